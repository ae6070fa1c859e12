#!/usr/bin/env bash
# DDP and pipelines on the embedded sample: about seven minutes on two cores. SEEDS="0 1 2" gives intervals; then runs
# go in random order, and DDP's twice.
# The same job for all: 300 steps of 32 samples, one CPU thread per process. RESUME=1 skips runs that have finished.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES= # CPU processes, on a node with GPUs as on a laptop

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3
       --cpu_threads 1 --eval_steps 50 --target_f1 80 --profile_steps 3 --noise_scale_steps 4
       --output_dir "${RESULTS:-results}/study" "$@")
if [[ ! ${RESUME:-} ]]; then
    OVERWRITE=yes
fi
source experiments/runs.sh

for_each_seed ddp_and_pipelines 0
compare "${RESULTS:-results}/study"

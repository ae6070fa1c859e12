#!/usr/bin/env bash
# With dropout no two runs are equal. Does any strategy end with a different validation loss than DDP or one process?
# The small study's job (study.sh) with dropout: eight runs, in random order, and about twelve minutes per seed on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3
       --cpu_threads 1 --eval_steps 300 --dropout 0.1 --output_dir "${RESULTS:-results}/dropout" "$@")
OVERWRITE=yes
source experiments/runs.sh

strategies() {
    ddp_and_pipelines
    run pipeline.py --num_gpus 4 --stages 2 --micro_batches 4
}
for_each_seed strategies "0 1 2"
compare "${RESULTS:-results}/dropout"

#!/usr/bin/env bash
# Every strategy on the embedded sample: some seven minutes on two cores. SEEDS="0 1 2" gives intervals.
# The same job for all: 300 steps of 32 samples, one CPU thread a process.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=  # on CPU processes, so that it runs alike on a laptop and on a node with GPUs

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3
       --cpu_threads 1 --eval_steps 50 --target_f1 80 --profile_steps 3 --noise_scale_steps 4
       --output_dir "${RESULTS:-results}/demo" --overwrite "$@")

for seed in ${SEEDS:-0}; do
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 1
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 2
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 4
    python pipeline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 2 --micro_batches 4
    python pipeline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 4 --micro_batches 4
done
python plots.py "${RESULTS:-results}/demo"

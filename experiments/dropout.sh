#!/usr/bin/env bash
# With dropout no two runs are equal. Does any strategy end with a different validation loss than DDP or one process?
# The demo's job with dropout: six runs and about nine minutes per seed on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3
       --cpu_threads 1 --eval_steps 300 --dropout 0.1 --output_dir "${RESULTS:-results}/dropout" --overwrite "$@")

for seed in ${SEEDS:-0 1 2}; do
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 1
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 2
    python bert_baseline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 4
    python pipeline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 2 --micro_batches 4
    python pipeline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 4 --micro_batches 4
    python pipeline.py "${FLAGS[@]}" --seed "$seed" --num_gpus 4 --stages 2 --micro_batches 4
done
python plots.py "${RESULTS:-results}/dropout"

#!/usr/bin/env bash
# With dropout on, no two runs are equal: is a strategy's validation loss within the spread of one process's seeds?
# Ten runs of the demo's job, some fifteen minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3
       --cpu_threads 1 --eval_steps 300 --dropout 0.1 --output_dir results/dropout --overwrite)

for seed in 0 1 2 3 4; do
    python bert_baseline.py "${FLAGS[@]}" --num_gpus 1 --seed "$seed"
done
python bert_baseline.py "${FLAGS[@]}" --num_gpus 2
python bert_baseline.py "${FLAGS[@]}" --num_gpus 4
python pipeline.py "${FLAGS[@]}" --num_gpus 2 --micro_batches 4
python pipeline.py "${FLAGS[@]}" --num_gpus 4 --micro_batches 4
python pipeline.py "${FLAGS[@]}" --num_gpus 4 --stages 2 --micro_batches 4
python plots.py results/dropout

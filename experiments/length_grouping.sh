#!/usr/bin/env bash
# Batches of samples of similar length against plain shuffling: does the model learn the same, and is the gradient noise
# scale the same? Runs one process on the embedded sample, or with the flags after the command another model and data:
#
#     SEEDS="0 1 2" bash experiments/length_grouping.sh
#     bash experiments/length_grouping.sh --model bert-base-uncased --train_file train-v2.0.json --eval_file dev-v2.0.json
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -eq 0 ]]; then
    export CUDA_VISIBLE_DEVICES=
    set -- --sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3 \
        --noise_scale_steps 4 --eval_steps 300
fi
FLAGS=("$@" --num_gpus 1 --output_dir "${RESULTS:-results}/length_grouping")
source experiments/runs.sh

groupings() {
    for grouping in true false; do
        run bert_baseline.py --length_grouping "$grouping" --run_name "grouping-$grouping-seed$seed"
    done
}
for_each_seed groupings "0 1 2"
compare "${RESULTS:-results}/length_grouping"

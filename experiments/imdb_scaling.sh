#!/usr/bin/env bash
# How DDP scales: 20 epochs of IMDB on one device and on several, with our own Transformer encoder from scratch.
#
#     DEVICES=4 bash experiments/imdb_scaling.sh                   # 4 GPUs; IMDB and bert-base-uncased's tokenizer from the Hub
#     DEVICES=4 bash experiments/imdb_scaling.sh --train_file aclImdb/train --eval_file aclImdb/test
#     SAMPLE=1 DEVICES=2 bash experiments/imdb_scaling.sh          # a laptop: CPU, the embedded sample, a tiny model, 6 epochs
#
# Strong scaling: the global batch stays 64, so every run takes the same steps and learns the same. Weak scaling: the
# batch per device stays 64, so each device has as much to do as one alone, but there are fewer steps with more samples.
# All other flags are the same. Several seeds (SEEDS="0 1 2"): their runs go in random order, that on one device twice. If
# interrupted, the same command resumes it.
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICES=${DEVICES:-4}
RESULTS=${RESULTS:-results}/imdb_scaling
BATCH=64 # on one device
FLAGS=(--task imdb --epochs 20 --learning_rate 3e-4 --profile_steps 3 --output_dir "$RESULTS")
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    RESULTS+=_sample
    BATCH=32
    FLAGS=(--task imdb --sample --model tiny --epochs 6 --learning_rate 1e-3 --cpu_threads 1 --profile_steps 3
           --noise_scale_steps 4 --output_dir "$RESULTS")
fi
FLAGS+=("$@")
source experiments/runs.sh
verify_first imdb "$RESULTS" $(powers_of_2 "${DEVICES_A_NODE:-$DEVICES}")
plan_first $(powers_of_2 "$DEVICES")

scalings() {
    baseline bert_baseline.py --num_gpus 1 --global_batch_size "$BATCH"
    for ((devices = 2; devices <= DEVICES; devices *= 2)); do
        run bert_baseline.py --num_gpus "$devices" --global_batch_size "$BATCH"
        run bert_baseline.py --num_gpus "$devices" --global_batch_size $((BATCH * devices))
    done
}
for_each_seed scalings 0
compare "$RESULTS"

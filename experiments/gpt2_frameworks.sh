#!/usr/bin/env bash
# GPT-2 small from scratch on 100 MB of OSCAR: DataParallel, DDP, ZeRO-2 and -3, FSDP, a pipeline and tensor parallelism
# on 1, 2 and 4 devices.
#
#     DEVICES=4 bash experiments/gpt2_frameworks.sh      # 4 GPUs; OSCAR 23.01 from the Hub, whose licence you must accept first
#     bash experiments/gpt2_frameworks.sh --train_file train.txt --eval_file eval.txt      # any other text
#     SAMPLE=1 bash experiments/gpt2_frameworks.sh       # a laptop: CPU, the embedded sample, a tiny model
#
# One global batch for all. Several seeds (SEEDS="0 1 2"): their runs go in random order, DDP's twice. If interrupted, the
# same command resumes it.
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICES=${DEVICES:-4}
DEVICES_A_NODE=${DEVICES_A_NODE:-$DEVICES}
RESULTS=${RESULTS:-results}/gpt2_frameworks
FLAGS=(--task oscar --epochs 1 --global_batch_size 64 --learning_rate 6e-4 --weight_decay 0.1 --profile_steps 3
       --output_dir "$RESULTS")
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    RESULTS+=_sample
    FLAGS=(--task oscar --sample --model tiny --max_seq_length 128 --max_steps 60 --global_batch_size 16
           --learning_rate 1e-3 --cpu_threads 1 --profile_steps 3 --noise_scale_steps 4 --output_dir "$RESULTS")
fi
FLAGS+=("$@")
source experiments/runs.sh
verify_first oscar "$RESULTS" $(powers_of_2 "$DEVICES_A_NODE")
plan_first $(powers_of_2 "$DEVICES")

frameworks() {
    for ((devices = 1; devices <= DEVICES; devices *= 2)); do
        # DataParallel is one process on one node; without GPUs it has nothing to split the batch over.
        if ((devices == 1)) || [[ ! ${SAMPLE:-} ]] && ((devices <= DEVICES_A_NODE)); then
            run data_parallel.py --num_gpus "$devices"
        fi
        baseline bert_baseline.py --num_gpus "$devices"
        run zero.py --num_gpus "$devices" --stage 2
        run zero.py --num_gpus "$devices" --stage 3
        run fsdp.py --num_gpus "$devices"
        if ((devices >= 4)); then
            run fsdp.py --num_gpus "$devices" --shard_group $((devices / 2))
            run zero.py --num_gpus "$devices" --stage 3 --secondary_shard_group $((devices / 2))
        fi
        run pipeline.py --num_gpus "$devices"
        run bert_baseline.py --num_gpus "$devices" --activation_checkpointing
        if ((devices <= 4)); then # GPT-2 small has 12 heads, the tiny model 4
            run tensor_parallel.py --num_gpus "$devices"
        fi
    done
}
for_each_seed frameworks 0
compare "$RESULTS" --published

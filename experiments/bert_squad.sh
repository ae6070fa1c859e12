#!/usr/bin/env bash
# The main study: BERT-base on SQuAD v2 with every strategy; only the strategy differs between runs.
#
#     DEVICES=4 SEEDS="0 1 2" bash experiments/bert_squad.sh   # 4 GPUs; bert-base-uncased and SQuAD v2 from the Hub
#     SAMPLE=1 bash experiments/bert_squad.sh                  # a laptop: CPU, the embedded sample, a tiny model
#     bash experiments/bert_squad.sh --epochs 1                # further flags go to every run
#
# Several seeds: their runs go in random order, DDP's twice. If interrupted, the same command resumes it. A run that
# fails is named at the end, and the others still run.
# On a cluster: experiments/slurm/bert_squad.sbatch.
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICES=${DEVICES:-4}
DEVICES_A_NODE=${DEVICES_A_NODE:-$DEVICES}
RESULTS=${RESULTS:-results}/bert_squad
GROUP=4         # the largest tensor group: both models' heads, 12 and 4, can be divided by 2 and 4
STAGES=$DEVICES # of PyTorch's pipelines; some schedules put two pieces of the model on each stage
FLAGS=(--profile_steps 3 --output_dir "$RESULTS")
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    RESULTS+=_sample
    STAGES=2 # the tiny model has 4 layers
    FLAGS=(--profile_steps 3 --output_dir "$RESULTS" --sample --model tiny --max_seq_length 128
           --global_batch_size 32 --max_steps 100 --learning_rate 1e-3 --cpu_threads 1 --noise_scale_steps 4)
fi
FLAGS+=("$@")
source experiments/runs.sh
verify_first squad_v2 "$RESULTS" $(powers_of_2 "$DEVICES_A_NODE")
plan_first $(powers_of_2 "$DEVICES")

strategies() {
    for ((devices = 1; devices <= DEVICES; devices *= 2)); do
        baseline bert_baseline.py --num_gpus "$devices"
        for ((stages = 2; stages <= devices; stages *= 2)); do
            run pipeline.py --num_gpus "$devices" --stages "$stages"
        done
    done
    for schedule in gpipe 1f1b interleaved zero_bubble zbv; do
        if ((DEVICES > 1)) || [[ $schedule == gpipe || $schedule == 1f1b ]]; then # the others need two stages
            run torch_pipeline.py --num_gpus "$DEVICES" --stages "$((STAGES < DEVICES ? STAGES : DEVICES))" \
                --schedule "$schedule"
        fi
    done
    for stage in 0 1 2 3; do
        run zero.py --num_gpus "$DEVICES" --stage "$stage"
    done
    run zero.py --num_gpus "$DEVICES" --stage 2 --offload
    run fsdp.py --num_gpus "$DEVICES"
    run fsdp.py --num_gpus "$DEVICES" --reshard_after_forward false
    if ((DEVICES >= 4)); then
        run fsdp.py --num_gpus "$DEVICES" --shard_group $((DEVICES / 2))
        run zero.py --num_gpus "$DEVICES" --stage 3 --secondary_shard_group $((DEVICES / 2))
    fi
    run bert_baseline.py --num_gpus "$DEVICES" --activation_checkpointing
    run fsdp.py --num_gpus "$DEVICES" --activation_checkpointing
    run pipeline.py --num_gpus "$DEVICES" --activation_checkpointing
    for ((group = 2; group <= GROUP && group <= DEVICES; group *= 2)); do
        run tensor_parallel.py --num_gpus "$DEVICES" --tensor_parallel "$group"
        run tensor_parallel.py --num_gpus "$DEVICES" --tensor_parallel "$group" --sequence_parallel
    done
    if ((DEVICES > 2)); then # else there is one tensor group
        run tensor_parallel.py --num_gpus "$DEVICES" --tensor_parallel 2 --shard_replicas
    fi
    run hf_trainer.py --num_gpus "$DEVICES"
    run hf_trainer.py --num_gpus "$DEVICES" --deepspeed_config experiments/zero2.json
    if [[ ${SAMPLE:-} ]]; then
        run data_parallel.py # one device: without GPUs there is nothing to split the batch over
    else
        run data_parallel.py --num_gpus "$DEVICES_A_NODE"
    fi
}
for_each_seed strategies 0
compare "$RESULTS"

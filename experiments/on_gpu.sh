#!/usr/bin/env bash
# The first hour on a GPU: is every strategy right here, how fast is it, and does everything run that needs a GPU?
#
#     bash experiments/on_gpu.sh                  # all parts, half an hour on one GPU
#     bash experiments/on_gpu.sh verify compile   # some of them, as listed in ALL
#     SAMPLE=1 bash experiments/on_gpu.sh         # a tiny model and a few steps, to see whether it runs to its end
#
# It takes BERT-base and SQuAD v2 from the Hub; without a network, or with HF_HUB_OFFLINE=1, a model of that shape with
# random weights, and text of such lengths (experiments/gpu_inputs.py). Runs go to results/on_gpu/GPU/. DEVICES=1 uses
# one GPU of several; by default it is all of them, rounded down to a power of two.
#
# A part ends after 10 minutes (PART_LIMIT_S=600) and counts as failed if it has runs left. A failure does not stop the
# others; it is named at the end, and the exit code is 1. The same command resumes: what is finished is skipped.
# CONTRIBUTING.md says how to send the results.
set -euo pipefail
cd "$(dirname "$0")/.."

ALL=(verify reference batches strategies pipelines compile precision)
declare -A MINUTES=([verify]=6 [reference]=4 [batches]=2 [strategies]=9 [pipelines]=3 [compile]=4 [precision]=3)
parts=("${@:-${ALL[@]}}")
minutes=0
for part in "${parts[@]}"; do
    if [[ " ${ALL[*]} " != *" $part "* ]]; then
        echo "error: there is no part $part; use some of ${ALL[*]}" >&2
        exit 2
    fi
    minutes=$((minutes + MINUTES[$part]))
done
found=$(python -m experiments.gpu_records gpu) || exit 2
read -r GPU GPUS SHORT FITS <<< "$found" # folder, number, bf16 or fp16, samples in a forward pass
DEVICES=${DEVICES:-$GPUS} PART_LIMIT_S=${PART_LIMIT_S:-600}
RESULTS=${RESULTS:-results}/on_gpu/$GPU
BATCH=64 LARGE=512 STAGES=$((DEVICES < 4 ? DEVICES : 4)) # two pieces on each of 4 stages, of 12 layers
if [[ ${SAMPLE:-} ]]; then
    RESULTS+=_sample BATCH=16 LARGE=32 STAGES=$((DEVICES < 2 ? DEVICES : 2)) # of 4 layers
    FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 6 --learning_rate 1e-3 --cpu_threads 1
           --profile_steps 2 --max_eval_examples 16)
fi
echo "about $minutes minutes on one H100, by estimate: not measured on a GPU so far (${parts[*]}); $DEVICES x $GPU"
if ! git rev-parse HEAD &> /dev/null || [[ $(git status --porcelain) ]]; then
    echo "warning: records need a commit without changes on top of it; these runs cannot become records" >&2
fi
if [[ ! ${SAMPLE:-} ]]; then
    inputs=$(python -m experiments.gpu_records inputs "$RESULTS") || exit 2
    eval "FLAGS=($inputs)" # quoted there
    FLAGS+=(--max_steps 60 --eval_steps 60 --max_eval_examples 200 --profile_steps 3)
fi
FLAGS+=(--output_dir "$RESULTS")
source experiments/runs.sh
LIMIT=in_time

# in_time COMMAND...: run it in what the part has left of its time. Ended by SIGTERM, a run ends its other processes.
in_time() {
    local left=$((deadline - SECONDS)) code=124
    if ((left >= 20)); then
        timeout --foreground --kill-after 60 "$left" "$@" && return
        code=$?
    fi
    if ((code == 124)); then
        echo "the part's time is up; start it again to run the rest" >&2
    fi
    return $code
}

least() { printf '%s\n' "$@" | sort -n | head -n 1; }

# on DEVICES BATCH PRECISION SCRIPT FLAGS...: run it with at least 4 micro-batches, of samples that fit a device.
on() {
    local devices=$1 batch=$2 precision=$3 size=()
    shift 3
    if [[ $1 != *pipeline.py ]]; then
        size=(--micro_batch_size "$(least $((batch / devices)) $((batch / 4)) "$FITS")")
    fi
    run "$@" --num_gpus "$devices" --global_batch_size "$batch" --precision "$precision" "${size[@]}"
}

plain_ddp() {
    for devices in $(printf '%s\n' 1 "$DEVICES" | uniq); do
        on "$devices" $BATCH "$SHORT" bert_baseline.py
    done
}

run_part() {
    local devices stage schedule
    local micro_batches=$((BATCH * STAGES / DEVICES / FITS)) # of a pipeline, so that they fit
    local shape=(--stages "$STAGES" --micro_batches $((micro_batches > 4 * STAGES ? micro_batches : 4 * STAGES)))
    case $1 in
        verify)
            if python -m experiments.gpu_records verified "$RESULTS" "$DEVICES"; then
                echo "$RESULTS/verification.json is finished"
            else
                in_time python verify.py --num_gpus "$DEVICES" --limit_s 100 --output_dir "$RESULTS" ||
                    failed+=(verify.py)
            fi ;;
        reference)
            for_each_seed plain_ddp "0 1 2" ;;
        batches)
            on "$DEVICES" $BATCH "$SHORT" bert_baseline.py
            on "$DEVICES" $LARGE "$SHORT" bert_baseline.py ;;
        strategies)
            on "$DEVICES" $BATCH "$SHORT" bert_baseline.py
            on "$DEVICES" $BATCH "$SHORT" data_parallel.py
            for stage in 0 1 2 3; do
                on "$DEVICES" $BATCH "$SHORT" zero.py --stage $stage
            done
            on "$DEVICES" $BATCH "$SHORT" zero.py --stage 3 --offload
            on "$DEVICES" $BATCH "$SHORT" fsdp.py
            on "$DEVICES" $BATCH "$SHORT" fsdp.py --reshard_after_forward false
            on "$DEVICES" $BATCH "$SHORT" bert_baseline.py --activation_checkpointing
            if ((DEVICES > 1)); then
                on "$DEVICES" $BATCH "$SHORT" tensor_parallel.py --tensor_parallel 2
                on "$DEVICES" $BATCH "$SHORT" tensor_parallel.py --tensor_parallel 2 --sequence_parallel
            fi
            if ((DEVICES > 2)); then # else there is one group
                on "$DEVICES" $BATCH "$SHORT" fsdp.py --shard_group 2
                on "$DEVICES" $BATCH "$SHORT" tensor_parallel.py --tensor_parallel 2 --shard_replicas
            fi
            on "$DEVICES" $BATCH "$SHORT" hf_trainer.py
            on "$DEVICES" $BATCH "$SHORT" hf_trainer.py --deepspeed_config experiments/zero2.json ;;
        pipelines)
            on "$DEVICES" $BATCH "$SHORT" pipeline.py "${shape[@]}"
            for schedule in gpipe 1f1b interleaved zero_bubble zbv; do
                if ((STAGES > 1)) || [[ $schedule == gpipe || $schedule == 1f1b ]]; then # the others need two stages
                    on "$DEVICES" $BATCH "$SHORT" torch_pipeline.py "${shape[@]}" --hang_timeout_s 60 \
                        --schedule $schedule
                fi
            done ;;
        compile)
            on "$DEVICES" $BATCH "$SHORT" bert_baseline.py --compile --run_name "ddp-compiled-${DEVICES}dev"
            on "$DEVICES" $BATCH "$SHORT" fsdp.py --compile --run_name "fsdp-compiled-${DEVICES}dev" ;;
        precision)
            on "$DEVICES" $BATCH "$SHORT" bert_baseline.py
            on "$DEVICES" $BATCH fp32 bert_baseline.py
            if [[ $SHORT == bf16 ]]; then # such GPUs have TF32 too
                on "$DEVICES" $BATCH fp32 bert_baseline.py --tf32 --run_name "ddp-tf32-${DEVICES}dev"
            fi ;;
    esac
}

for part in "${parts[@]}"; do
    echo "== $part: about ${MINUTES[$part]} minutes, at most $((PART_LIMIT_S / 60))"
    deadline=$((SECONDS + PART_LIMIT_S)) count=${#failed[@]}
    run_part "$part"
    for ((; count < ${#failed[@]}; count++)); do
        failed[count]="$part: ${failed[count]}"
    done
done
if compgen -G "$RESULTS/*/summary.csv" > /dev/null; then
    python plots.py "$RESULTS" || failed+=("plots.py $RESULTS")
fi
echo "The CSVs are in $RESULTS/, a folder for each run; CONTRIBUTING.md says how to send them."
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi

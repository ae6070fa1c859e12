#!/usr/bin/env bash
# Makes the committed records in results/reference/ again, all or some of them, from a clean commit on CPU processes.
#
#     bash experiments/reference.sh               # all of them; an estimate of the time comes first
#     bash experiments/reference.sh study          # some parts of them, as listed in ALL
#     python -m docs.records                       # then: the documents' figures, from the new records
#
# verify.py first proves every strategy on 1, 2 and 4 processes, for BERT; GPT-2 and the encoder would take as long again.
# Runs go to results/reference_runs/COMMIT/ and replace the records when all of them have finished: a changed record would
# make the next run's tree dirty. If interrupted, the same command at the same commit resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'exit 130' INT

ALL=(study long_run bert_squad published_setup imdb_scaling gpt2_frameworks autotuning_mnli length_grouping
     zero_memory)
parts=("${@:-${ALL[@]}}")
for part in "${parts[@]}"; do
    if [[ " ${ALL[*]} " != *" $part "* ]]; then
        echo "error: there is no part $part; use some of ${ALL[*]}" >&2
        exit 2
    fi
done
if ! commit=$(git rev-parse --short=12 HEAD 2> /dev/null) || [[ $(git status --porcelain) ]]; then
    echo "error: records are made from a commit without changes on top of it; commit or stash yours (git status)" >&2
    exit 2
fi
runs=results/reference_runs/$commit

# What decides a run is set here, whatever the caller's environment has.
export CUDA_VISIBLE_DEVICES= SAMPLE=1 DEVICES=4 RESUME=1 VERIFY=no PLAN=no
unset SEEDS TASK LAUNCHER DEVICES_A_NODE

# What a thread's matrix products reach here, for MFU: measured once, as a resumed run must have the same flags.
peak_tflops() {
    mkdir -p "$runs"
    [[ -s $runs/peak.txt ]] || python -m benchmarks.peak_rate > "$runs/peak.txt"
    sed -E 's/.*median ([0-9.]+) TFLOPS.*/\1/' "$runs/peak.txt"
}

make_part() {
    export RESULTS=$runs/$1
    case $1 in
        study) bash experiments/study.sh --peak_tflops "$(peak_tflops)" ;;
        long_run) # docs/notes/published_results.md
            python experiments/run_once.py bert_baseline.py --num_gpus 1 --sample --model tiny --max_seq_length 128 \
                --max_steps 3000 --global_batch_size 16 --micro_batch_size 16 --learning_rate 1e-3 --dropout 0.1 \
                --cpu_threads 1 --eval_steps 3000 --output_dir "$RESULTS" --run_name long ;;
        published_setup) DEVICES="4 2 4" bash experiments/published_setup.sh ;;
        autotuning_mnli) DEVICES=2 TASK=mnli bash experiments/autotuning.sh ;;
        zero_memory) bash benchmarks/zero_memory.sh ;;
        *) bash "experiments/$1.sh" ;;
    esac
}

python -m experiments.reference_records estimate "$runs" "${parts[@]}"
for devices in 1 2 4; do
    python verify.py --num_gpus "$devices" --output_dir "$runs" --skip_verified
done
for part in "${parts[@]}"; do
    if [[ ! -e $runs/$part.finished ]]; then
        make_part "$part"
        touch "$runs/$part.finished"
    fi
done
python -m experiments.reference_records replace "$runs" "${parts[@]}"

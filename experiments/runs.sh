# Sourced by experiments that consist of many runs. They set FLAGS, the flags of every run, and write a function that
# calls `run` and `baseline` for the runs of one seed, which `for_each_seed` calls. If they set LIMIT too, it is a command
# that runs its arguments within some time; OVERWRITE=yes runs again what has finished.

trap 'exit 130' INT # Ctrl-C ends the whole experiment, not only the current run
failed=() seed=0 listing=
total=0 number=0 trained=0 spent=0 # runs in all, begun, trained by this command; seconds of the latter

# run SCRIPT FLAGS...: run it with the common flags too, unless that has been done already.
run() {
    local words=("$@" "${FLAGS[@]}" --seed "$seed")
    if [[ $listing ]]; then
        printf '%q ' run "$@" && echo
        return
    fi
    if [[ ${OVERWRITE:-} == yes ]]; then
        words+=(--overwrite)
    else
        words=(experiments/run_once.py "${words[@]}")
    fi
    number=$((number + 1))
    export EXPERIMENT_PROGRESS=
    if ((total)); then
        EXPERIMENT_PROGRESS="run $number of $total"
        if ((trained)); then
            EXPERIMENT_PROGRESS+=", about $(((spent * (total - number + 1) / trained + 59) / 60)) min left"
        fi
    fi
    local began=$SECONDS
    ${LIMIT:-} python "${words[@]}" || failed+=("$* --seed $seed")
    if ((SECONDS - began > 2)); then # else it was finished already
        trained=$((trained + 1)) spent=$((spent + SECONDS - began))
    fi
}

# baseline SCRIPT FLAGS...: the same, for a run that others are compared with. With several seeds it is run twice, under
# two names: by how much the two differ is the noise that a difference between strategies has to exceed.
baseline() {
    run "$@"
    if [[ $listing ]]; then
        run "$@" --run_name "rerun-$(tr -cs '[:alnum:]_\n' - <<< "$* seed $seed")"
    fi
}

# ddp_and_pipelines: the rows of the small experiments.
ddp_and_pipelines() {
    run bert_baseline.py --num_gpus 1
    baseline bert_baseline.py --num_gpus 2
    baseline bert_baseline.py --num_gpus 4
    run pipeline.py --num_gpus 2 --micro_batches 4
    run pipeline.py --num_gpus 4 --micro_batches 4
}

# for_each_seed FUNCTION SEEDS: call a function that lists the runs of one seed for each of $SEEDS, or of these. With
# several seeds the runs of each go in an order of their own, so that a machine that slows down disadvantages nobody. It
# is drawn from the seed: an experiment that is resumed keeps it, and each run.json says when its run started.
for_each_seed() {
    local seeds order line
    read -ra seeds <<< "${SEEDS:-$2}"
    total=$(listing=yes && "$1" | { ((${#seeds[@]} == 1)) && grep -v -e '--run_name rerun-' || cat; } | wc -l)
    total=$((total * ${#seeds[@]})) number=0
    for seed in "${seeds[@]}"; do
        if ((${#seeds[@]} == 1)); then
            "$1"
        else
            order=$(listing=yes && "$1" | python -c 'import random, sys
lines = sys.stdin.readlines()
random.Random(int(sys.argv[1])).shuffle(lines)
sys.stdout.writelines(lines)' "$seed")
            while read -ru 3 line; do
                eval "$line"
            done 3<<< "$order"
        fi
    done
    seed=0 total=0
}

# verify_first TASK FOLDER DEVICES...: prove every strategy on so many devices, unless that was done. VERIFY=no skips it.
verify_first() {
    for devices in "${@:3}"; do
        [[ ${VERIFY:-} == no ]] || python verify.py --task "$1" --output_dir "$2" --num_gpus "$devices" --skip_verified ||
            { echo "not verified: VERIFY=no runs the experiment all the same" >&2; exit 1; }
    done
}

# plan_first DEVICES...: calibrate and predict the runs on so many devices; plots.py then shows predicted beside measured.
# PLAN=no skips it.
plan_first() {
    [[ ${PLAN:-} == no ]] || python plan.py --num_gpus "${DEVICES_A_NODE:-$DEVICES}" --devices "$@" "${FLAGS[@]}" ||
        { echo "not planned: PLAN=no runs the experiment all the same" >&2; exit 1; }
}

# powers_of_2 UP_TO: 1 2 4 ...
powers_of_2() {
    for ((number = 1; number <= $1; number *= 2)); do echo "$number"; done
}

# compare FOLDER: compare the finished runs, then name those that failed.
compare() {
    python plots.py "$@"
    if ((${#failed[@]})); then
        printf 'failed: %s\n' "${failed[@]}" >&2
        exit 1
    fi
}

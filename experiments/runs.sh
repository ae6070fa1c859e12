# Sourced by experiments that consist of many runs. They set FLAGS, the flags of every run, and `seed`; if they set LIMIT
# too, it is a command that runs its arguments within some time.

trap 'exit 130' INT # Ctrl-C ends the whole experiment, not only the current run
failed=()

# run SCRIPT FLAGS...: run it with the common flags too, unless that has been done already.
run() {
    ${LIMIT:-} python experiments/run_once.py "$@" "${FLAGS[@]}" --seed "$seed" || failed+=("$* --seed $seed")
}

# verify_first TASK FOLDER DEVICES...: prove every strategy on so many devices, unless that was done. VERIFY=no skips it.
verify_first() {
    for devices in "${@:3}"; do
        [[ ${VERIFY:-} == no ]] || python verify.py --task "$1" --output_dir "$2" --num_gpus "$devices" --skip_verified ||
            { echo "not verified: VERIFY=no runs the experiment all the same" >&2; exit 1; }
    done
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

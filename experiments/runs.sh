# Sourced by experiments that consist of many runs. They set FLAGS, the flags of every run, and `seed`; if they set LIMIT
# too, it is a command that runs its arguments within some time.

trap 'exit 130' INT # Ctrl-C ends the whole experiment, not only the current run
failed=()

# run SCRIPT FLAGS...: run it with the common flags too, unless that has been done already.
run() {
    ${LIMIT:-} python experiments/run_once.py "$@" "${FLAGS[@]}" --seed "$seed" || failed+=("$* --seed $seed")
}

# compare FOLDER: compare the finished runs, then name those that failed.
compare() {
    python plots.py "$@"
    if ((${#failed[@]})); then
        printf 'failed: %s\n' "${failed[@]}" >&2
        exit 1
    fi
}

# To be sourced: what the experiments of many runs share. They set FLAGS, those of every run, and `seed`.

trap 'exit 130' INT # Ctrl-C ends all of it, not one run
failed=()

# A script with the flags of this run, unless it has been run already.
run() {
    python experiments/run_once.py "$@" "${FLAGS[@]}" --seed "$seed" || failed+=("$* --seed $seed")
}

# Compare what there is, then name the runs that failed.
compare() {
    python plots.py "$@"
    if ((${#failed[@]})); then
        printf 'failed: %s\n' "${failed[@]}" >&2
        exit 1
    fi
}

# Sourced by the .sbatch files at the beginning of every job, in the project's folder.
#
# RESULTS         where runs go, on storage that all nodes share; results/ in the project by default
# DEVICES_A_NODE  devices per node: the job's GPUs, or, without GPUs, the number of CPU processes
# DEVICES         devices of the whole job, as the experiments expect it
set -euo pipefail
if [[ ! -f experiments/run_once.py ]]; then
    echo "error: $PWD is not the project's folder; call sbatch there, or give it --chdir" >&2
    exit 2
fi
DEVICES_A_NODE=${DEVICES_A_NODE:-${SLURM_GPUS_ON_NODE:-}}
if [[ ! $DEVICES_A_NODE ]]; then
    echo "error: this job has no GPUs; DEVICES_A_NODE=2 before sbatch gives it 2 CPU processes a node" >&2
    exit 2
fi
export PATH="$PWD/.venv/bin:$PATH"
export RESULTS=${RESULTS:-results} DEVICES_A_NODE DEVICES=${DEVICES:-$((DEVICES_A_NODE * SLURM_JOB_NUM_NODES))}
export LAUNCHER=$PWD/experiments/slurm/launch.sh

# study COMMAND: run it to its end, or until SLURM sends USR1 (--signal) because the job's time is nearly over. The job
# is then queued again to resume, unless it trained no step, in which case it never would.
study() {
    local status=0
    began=$(date +%s)
    trap queue_again USR1
    # The job ends with this shell, and SLURM kills the remaining processes. Give runs time to write a checkpoint.
    trap 'sleep 25; exit 143' TERM
    "$@" & # in the background: bash handles signals at once only in `wait`
    while kill -0 $! 2> /dev/null; do
        wait $! && status=0 || status=$?
    done
    return "$status"
}

queue_again() {
    if [[ $(find "$RESULTS" -name steps.csv -newermt "@$began") ]]; then
        echo "the job's time is nearly over: it queues up again and will resume"
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "error: the job's time is nearly over and it trained no step; give sbatch a longer --time" >&2
    fi
}

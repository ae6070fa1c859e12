#!/usr/bin/env bash
# launch.sh SCRIPT.py FLAGS: one training, on as many of the job's nodes as its --num_gpus need.
#
# On each node torchrun starts a process per device. The torchruns meet at a port of the first node that is derived from
# the job's number, so that two jobs on the same node use different ports.
set -euo pipefail

devices=$(sed -n 's/.*--num_gpus[ =]\([0-9]*\).*/\1/p' <<< "$*")
count=$(((${devices:-1} + DEVICES_A_NODE - 1) / DEVICES_A_NODE))
if ((count == 1)); then
    exec python "$@"
fi
if ((devices % DEVICES_A_NODE || count > SLURM_JOB_NUM_NODES)); then
    echo "error: --num_gpus $devices: this job has $SLURM_JOB_NUM_NODES nodes with $DEVICES_A_NODE devices each" >&2
    exit 2
fi
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n "$count")
# srun gives a task one core unless told otherwise.
exec srun --nodes="$count" --nodelist="$(IFS=,; echo "${nodes[*]}")" --ntasks="$count" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit \
    torchrun --nnodes "$count" --nproc-per-node "$DEVICES_A_NODE" --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "${nodes[0]}:$((20000 + SLURM_JOB_ID % 10000))" "$@"

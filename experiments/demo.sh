#!/usr/bin/env bash
# A first result, as it says below. The same job for all: 150 steps of 32 samples, one thread a process, one evaluation.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES= # CPU processes, on a node with GPUs as on a laptop

FLAGS=(--sample --model tiny --max_seq_length 128 --max_steps 150 --eval_steps 150 --global_batch_size 32
       --learning_rate 2e-3 --cpu_threads 1 --noise_scale_steps 2 --output_dir "${RESULTS:-results}/demo" "$@")
OVERWRITE=yes
source experiments/runs.sh

cat << END
The demo trains a tiny BERT on questions about small texts, four times: in one process, with DDP on two, and as
DeepSpeed pipelines of two and of four stages. It takes about two minutes on two cores. Each run learns the same; what
differs is the time that it takes and the memory that it needs.
END
strategies() {
    run bert_baseline.py --num_gpus 1
    run bert_baseline.py --num_gpus 2
    run pipeline.py --num_gpus 2 --micro_batches 4
    run pipeline.py --num_gpus 4 --micro_batches 4
}
for_each_seed strategies 0
compare "${RESULTS:-results}/demo"

cat << END

Look at the column "throughput", at "exact match" and "validation loss", which should agree, and at the page
${RESULTS:-results}/demo/report.html. Processes share this machine's cores: which strategy is faster on GPUs, only GPUs
can tell.
END
gpus=$(nvidia-smi --list-gpus 2> /dev/null | grep -c . || true)
if ((gpus)); then
    echo "This machine has $gpus GPU(s), which the demo left alone. To compare strategies on them:
DEVICES=$gpus bash experiments/bert_squad.sh"
fi

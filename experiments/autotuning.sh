#!/usr/bin/env bash
# The three settings of DeepSpeed's autotuning study (results/published/autotuning.csv) on its job, bert-base-cased on
# MNLI, at one global batch: Hugging Face's Trainer set by hand, DeepSpeed set by hand, and DeepSpeed set by its autotuner.
#
#     DEVICES=4 bash experiments/autotuning.sh                # 4 GPUs, and the Hub for bert-base-cased and GLUE's MNLI
#     DEVICES=4 SEEDS="0 1 2" bash experiments/autotuning.sh  # with intervals
#     TASK=squad_v2 DEVICES=4 bash experiments/autotuning.sh  # another job
#     SAMPLE=1 bash experiments/autotuning.sh                 # 2 CPU processes, the sample: 12 minutes on 2 cores
#
# Unlike in the study, where the global batch grew with the micro-batch size (from 16 x 128 by hand to 16 x 220), here a
# smaller micro-batch accumulates gradients, so that all rows train with the same batch.
set -euo pipefail
cd "$(dirname "$0")/.."

TASK=${TASK:-mnli}
DEVICES=${DEVICES:-2}
SHARE=256 # samples per device and step; the study had 128 by hand and 220 tuned
WORK=(--epochs 1)
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    SHARE=32
    WORK=(--sample --model tiny --max_seq_length 128 --max_steps 100 --learning_rate 1e-3 --cpu_threads 1)
fi
BY_HAND=$((SHARE / 2)) # micro-batch size
RESULTS=${RESULTS:-results}/autotuning
BEST=$RESULTS/trials/ds_config_optimal.json
FLAGS=(--task "$TASK" --global_batch_size $((SHARE * DEVICES)) "${WORK[@]}" --output_dir "$RESULTS")

source experiments/runs.sh
verify_first "$TASK" "$RESULTS" "$DEVICES"
plan_first "$DEVICES"
# Tuned are ZeRO's stage and the micro-batch size, of which the three largest that fit the global batch are tried.
mkdir -p "$RESULTS"
python - "$SHARE" "$RESULTS" << 'END'
import json, sys
from pathlib import Path
largest, results = int(sys.argv[1]), sys.argv[2]
config = json.loads(Path("ds_config.json").read_text())
config |= {"train_micro_batch_size_per_gpu": [size for size in (largest // 4, largest // 2, largest) if size],
           "zero_optimization": {"stage": "all"},
           "autotuning": {"enabled": True, "results_dir": f"{results}/trials", "exps_dir": f"{results}/experiments"}}
Path(results, "tuner.json").write_text(json.dumps(config))
END
echo "DeepSpeed's autotuner runs its trials, half a minute each; its output goes to $RESULTS/tuner.log"
# LOCAL_SIZE: the number of CPU processes that the tuner may start; it counts GPUs by itself. Without pdsh its log has a
# traceback after each trial, from cleaning up after processes that have already ended.
if ! LOCAL_SIZE=$DEVICES deepspeed --autotuning tune --num_gpus "$DEVICES" zero.py "${FLAGS[@]}" --overwrite \
        --deepspeed_config "$RESULTS/tuner.json" > "$RESULTS/tuner.log" 2>&1 || [[ ! -f $BEST ]]; then
    echo "error: the autotuner found no settings; see $RESULTS/tuner.log and $RESULTS/trials/*/stderr.log" >&2
    exit 1
fi

OVERWRITE=yes # the tuner's settings are new
FLAGS+=(--num_gpus "$DEVICES")
settings() {
    run hf_trainer.py --micro_batch_size "$BY_HAND" --run_name "trainer-by-hand-seed$seed"
    run zero.py --stage 1 --micro_batch_size "$BY_HAND" --run_name "deepspeed-by-hand-seed$seed"
    run zero.py --deepspeed_config "$BEST" --run_name "deepspeed-autotuned-seed$seed"
}
for_each_seed settings 0
compare "$RESULTS" --published

#!/usr/bin/env bash
# The three settings of DeepSpeed's autotuning study (results/published/autotuning.csv) on its job, bert-base-cased on
# MNLI, at one global batch: Hugging Face's Trainer set by hand, DeepSpeed set by hand, DeepSpeed as its autotuner sets it.
#
#     DEVICES=4 bash experiments/autotuning.sh                # 4 GPUs, and the Hub for bert-base-cased and GLUE's MNLI
#     DEVICES=4 SEEDS="0 1 2" bash experiments/autotuning.sh  # with intervals
#     TASK=squad_v2 DEVICES=4 bash experiments/autotuning.sh  # another job
#     SAMPLE=1 bash experiments/autotuning.sh                 # 2 CPU processes, the sample: some 12 minutes, 2 cores
#
# Not as in the study: its global batch grew with the micro-batch size (from 16 x 128 by hand to 16 x 220). Here a
# smaller micro-batch accumulates, so that all rows train alike.
set -euo pipefail
cd "$(dirname "$0")/.."

TASK=${TASK:-mnli}
DEVICES=${DEVICES:-2}
SHARE=256 # samples a device and step; the study's by hand were 128, and its tuned 220
WORK=(--epochs 1)
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    SHARE=32
    WORK=(--sample --model tiny --max_seq_length 128 --max_steps 100 --learning_rate 1e-3 --cpu_threads 1)
fi
BY_HAND=$((SHARE / 2)) # micro-batch size
RESULTS=${RESULTS:-results}/autotuning
BEST=$RESULTS/trials/ds_config_optimal.json
FLAGS=(--task "$TASK" --global_batch_size $((SHARE * DEVICES)) "${WORK[@]}" --output_dir "$RESULTS" --overwrite)

# What is to be tuned: ZeRO's stage, and of the micro-batches that make the global batch the three largest.
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
echo "DeepSpeed's autotuner makes its trials, half a minute each; what it says goes to $RESULTS/tuner.log"
# LOCAL_SIZE: how many CPU processes the tuner may start; GPUs it counts itself. Where pdsh is not installed, its log has
# a traceback after each trial: that trial is over by then, and nothing is left to be cleaned up.
if ! LOCAL_SIZE=$DEVICES deepspeed --autotuning tune --num_gpus "$DEVICES" zero.py "${FLAGS[@]}" \
        --deepspeed_config "$RESULTS/tuner.json" > "$RESULTS/tuner.log" 2>&1 || [[ ! -f $BEST ]]; then
    echo "error: the autotuner found no settings; see $RESULTS/tuner.log and $RESULTS/trials/*/stderr.log" >&2
    exit 1
fi

for seed in ${SEEDS:-0}; do
    flags=("${FLAGS[@]}" --seed "$seed" --num_gpus "$DEVICES")
    python hf_trainer.py "${flags[@]}" --micro_batch_size "$BY_HAND" --run_name "trainer-by-hand-seed$seed"
    python zero.py "${flags[@]}" --stage 1 --micro_batch_size "$BY_HAND" --run_name "deepspeed-by-hand-seed$seed"
    python zero.py "${flags[@]}" --deepspeed_config "$BEST" --run_name "deepspeed-autotuned-seed$seed"
done
python plots.py "$RESULTS" --published

#!/usr/bin/env bash
# The three settings of DeepSpeed's autotuning study (results/published/autotuning.csv) on our job, at one global batch:
# Hugging Face's Trainer set by hand, DeepSpeed set by hand, DeepSpeed as its autotuner sets it.
# DEVICES=8 chooses the number of GPUs, SEEDS="0 1 2" gives intervals; SAMPLE=1 takes CPU processes and the embedded
# sample (some ten minutes on two cores, most of them for the tuner's trials).
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICES=${DEVICES:-2}
RESULTS=results/autotuning
FLAGS=(--global_batch_size 64 --output_dir "$RESULTS" --overwrite)
if [ -n "${SAMPLE:-}" ]; then
    export CUDA_VISIBLE_DEVICES=
    FLAGS+=(--sample --model tiny --max_seq_length 128 --max_steps 100 --learning_rate 1e-3 --cpu_threads 1)
fi

# All micro-batches that make the global batch: the largest without accumulation, the others with.
mkdir -p "$RESULTS"
python - "$DEVICES" "$RESULTS" <<'END'
import json, sys
from pathlib import Path
largest, results = 64 // int(sys.argv[1]), sys.argv[2]
sizes = [size for size in (largest // 4, largest // 2, largest) if size]
config = json.loads(Path("ds_config.json").read_text())
config |= {"train_micro_batch_size_per_gpu": sizes, "gradient_accumulation_steps": 1,
           "zero_optimization": {"stage": "all"},
           "autotuning": {"enabled": True, "results_dir": f"{results}/trials", "exps_dir": f"{results}/experiments"}}
Path(results, "tuner.json").write_text(json.dumps(config))
END
# LOCAL_SIZE: how many CPU processes the tuner may start; with GPUs it counts those.
LOCAL_SIZE=$DEVICES deepspeed --autotuning tune --num_gpus "$DEVICES" zero.py "${FLAGS[@]}" \
    --deepspeed_config "$RESULTS/tuner.json"

for seed in ${SEEDS:-0}; do
    python hf_trainer.py "${FLAGS[@]}" --seed "$seed" --num_gpus "$DEVICES" --micro_batch_size 16 \
        --run_name "trainer-by-hand-seed$seed"
    python zero.py "${FLAGS[@]}" --seed "$seed" --num_gpus "$DEVICES" --stage 1 --micro_batch_size 16 \
        --run_name "deepspeed-by-hand-seed$seed"
    python zero.py "${FLAGS[@]}" --seed "$seed" --num_gpus "$DEVICES" \
        --deepspeed_config "$RESULTS/trials/ds_config_optimal.json" --run_name "deepspeed-autotuned-seed$seed"
done
python plots.py "$RESULTS" --published

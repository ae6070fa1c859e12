#!/usr/bin/env bash
# How much memory does a device save by what DDP, ZeRO 0 to 3 and FSDP share out? On CPU processes a tiny model is lost
# beside PyTorch itself, so this takes one of BERT-base's size, with random weights, for a few short steps: a quarter of
# an hour on two cores, and 12 GiB. DEVICES=2 needs half of it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=

DEVICES=${DEVICES:-4}
RESULTS=results/zero_memory
python - "$RESULTS/model" << 'END'
import sys
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering
BertForQuestionAnswering(BertConfig()).save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained("data/tiny_bert").save_pretrained(sys.argv[1])
END
FLAGS=(--sample --model "$RESULTS/model" --max_seq_length 64 --max_train_examples 64 --max_eval_examples 4 --max_steps 6
       --global_batch_size 8 --micro_batch_size 1 --cpu_threads 1 --noise_scale_steps 0 --profile_steps 2
       --num_gpus "$DEVICES" --output_dir "$RESULTS")

python experiments/run_once.py bert_baseline.py "${FLAGS[@]}"
for stage in 0 1 2 3; do
    python experiments/run_once.py zero.py "${FLAGS[@]}" --stage "$stage"
done
python experiments/run_once.py zero.py "${FLAGS[@]}" --stage 2 --offload
python experiments/run_once.py fsdp.py "${FLAGS[@]}"
rm -r "$RESULTS/model"
python plots.py "$RESULTS"

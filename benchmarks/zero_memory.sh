#!/usr/bin/env bash
# How much memory does a device save by what each strategy shards or splits? On CPU processes a tiny model is lost
# beside PyTorch itself, so this takes one of BERT-base's size, with random weights, for a few short steps: a
# quarter of an hour on two cores, and 12 GiB. DEVICES=2 needs half of it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
# A freed tensor goes back to the system at once, as it goes back to the pool that a GPU's figure leaves out. Otherwise
# the C library keeps it, and what is gathered and freed again (ZeRO-3, FSDP) adds up: FSDP 5.6 GiB instead of 1.4.
export MALLOC_MMAP_THRESHOLD_=65536

DEVICES=${DEVICES:-4}
RESULTS=${RESULTS:-results}/zero_memory
python - "$RESULTS/model" 2> /dev/null << 'END'
import sys
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering
BertForQuestionAnswering(BertConfig()).save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained("data/tiny_bert").save_pretrained(sys.argv[1])
END
FLAGS=(--sample --model "$RESULTS/model" --max_seq_length 64 --max_train_examples 64 --max_eval_examples 4 --max_steps 4
       --global_batch_size 8 --micro_batch_size 1 --cpu_threads 1 --noise_scale_steps 0
       --num_gpus "$DEVICES" --output_dir "$RESULTS")

python experiments/run_once.py bert_baseline.py "${FLAGS[@]}"
for stage in 0 1 2 3; do
    python experiments/run_once.py zero.py "${FLAGS[@]}" --stage "$stage"
done
python experiments/run_once.py fsdp.py "${FLAGS[@]}"
python experiments/run_once.py tensor_parallel.py "${FLAGS[@]}"
if ((DEVICES > 2)); then # else there is one group
    python experiments/run_once.py zero.py "${FLAGS[@]}" --stage 3 --secondary_shard_group 2
    python experiments/run_once.py fsdp.py "${FLAGS[@]}" --shard_group 2
    python experiments/run_once.py tensor_parallel.py "${FLAGS[@]}" --tensor_parallel 2
    python experiments/run_once.py tensor_parallel.py "${FLAGS[@]}" --tensor_parallel 2 --shard_replicas
fi
rm -r "$RESULTS/model"
python plots.py "$RESULTS"

#!/usr/bin/env bash
# The three setups of the first study (docs/notes/published_results.md) as they were trained, under accurate names. The
# study's pipelines of 2 and 4 stages were ZeRO-2 on 2 and 4 GPUs in Hugging Face's Trainer; zero.py runs the same
# without the Trainer.
#
#     bash experiments/published_setup.sh                # 4 GPUs, and the Hub for bert-base-uncased and SQuAD v2
#     SEEDS="0 1 2" bash experiments/published_setup.sh
#     SAMPLE=1 bash experiments/published_setup.sh       # a laptop's CPU: the embedded sample, a tiny model, 20 steps
#                                                        # (four minutes on two cores)
#
# As published: samples and steps, lengths, precision, AdamW and its schedule, no gradient clipping. Not as published:
# fp16 is autocast, as everywhere here; longer texts are split into windows, not truncated; the baseline's 80 % are a
# different random subset; batches are padded to their own longest window; biases and LayerNorm have no weight decay.
# These rows differ in their settings, so no table compares them.
# If interrupted, the same command resumes with the run that was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

read -r BASELINE TWO FOUR <<< "${DEVICES:-4 2 4}" # devices of the baseline, "2 stages", "4 stages"
COMMON=(--answerable_only --length_grouping false --micro_batch_size 16 --weight_decay 0.01 --max_grad_norm 1e9
        --output_dir "${RESULTS:-results}/published_setup")
AS_BASELINE=(--precision fp32 --global_batch_size 64 --max_seq_length 512 --max_train_examples 69456
             --learning_rate 5e-5 --lr_scheduler constant --adam_epsilon 1e-8)
AS_PIPELINE=(--precision fp16 --max_seq_length 384
             --learning_rate 3e-5 --lr_scheduler linear --warmup_steps 500 --adam_epsilon 1e-6)
STEPS=(5430 6785 3390)
if [[ ${SAMPLE:-} ]]; then
    export CUDA_VISIBLE_DEVICES=
    COMMON+=(--sample --model tiny --cpu_threads 1)
    AS_BASELINE+=(--max_seq_length 128)
    AS_PIPELINE+=(--max_seq_length 128 --warmup_steps 2)
    STEPS=(20 20 20)
fi

FLAGS=("${COMMON[@]}")
source experiments/runs.sh

setups() {
    local devices batch steps called flags what
    run bert_baseline.py "${AS_BASELINE[@]}" --max_steps "${STEPS[0]}" --num_gpus "$BASELINE" \
        --run_name "baseline-ddp-x$BASELINE-fp32-batch64-seed$seed"
    for setup in "$TWO 64 ${STEPS[1]} pipeline-of-2" "$FOUR 128 ${STEPS[2]} pipeline-of-4"; do
        read -r devices batch steps called <<< "$setup"
        flags=("${AS_PIPELINE[@]}" --deepspeed_config experiments/zero2.json --num_gpus "$devices"
               --global_batch_size "$batch" --max_steps "$steps")
        what="zero2-x$devices-fp16-batch$batch-called-$called-seed$seed"
        run hf_trainer.py "${flags[@]}" --run_name "hf-trainer-$what"
        run zero.py "${flags[@]}" --stage 2 --run_name "$what"
    done
}
for_each_seed setups 0
compare "${RESULTS:-results}/published_setup"

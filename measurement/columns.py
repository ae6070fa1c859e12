"""The columns of a run's tables. A value that is not known is an empty field: never 0, never a guess."""

import json
from collections.abc import Iterator

STEP_COLUMNS = ["step", "elapsed_s", "step_s", "data_s", "samples", "real_tokens", "padded_tokens", "train_loss",
                "learning_rate", "grad_norm", "micro_batch_squared_norm", "batch_squared_norm"]
DEVICE_COLUMNS = ["elapsed_s", "device", "utilization_pct", "memory_gib", "power_w", "temperature_c", "sm_clock_mhz",
                  "throttled"]
ENERGY = ["energy_j", "energy_j_per_1000_samples", "power_w", "temperature_c", "throttled_pct"]
# Seconds that a pipeline stage spent in a watched step, by kind of work.
STAGE_TIMES = [f"{kind}_s_per_step" for kind in ("forward", "backward", "send", "receive", "reduce", "optimizer")]
PROFILED = ["collective_s_per_step", "collective_mib_per_step", "collective_wire_mib_per_step",
            "point_to_point_s_per_step", "point_to_point_mib_per_step", "exposed_communication_s_per_step",
            "host_cpu_s_per_step", "device_s_per_step"]
# How the machine was while the run trained.
MACHINE = ["machine_drift_pct", "other_load_pct", "steal_pct", "cpu_clock_mhz", "sm_clock_mhz"]
RANK_COLUMNS = ["rank", "node", "device", "replica", "stage", "parameters", "peak_memory_gib", "gpu_utilization_pct",
                "power_w", "energy_j", "temperature_c", "throttled_pct", "data_s_per_step", *STAGE_TIMES,
                "idle_s_per_step", "bubble_pct", *PROFILED, *MACHINE]
# Which code ran, as each attempt in run.json and the row in summary.csv have it.
CODE_COLUMNS = ["source_digest", "script_digest", "commit", "dirty", "torch", "transformers", "deepspeed"]
# With a 95 % interval over sampled steps in two more columns, whose names end with LOW and HIGH.
FROM_NOISE = ["noise_scale_samples", "statistical_efficiency", "goodput_samples_per_s"]
LOW, HIGH = "_low", "_high"
INTERVALS = [name + end for name in FROM_NOISE for end in (LOW, HIGH)]
COMPLETE, YES, NO = "complete", "yes", "no"  # summary.csv's last column is always "yes": a row without it was cut off
SUMMARY_COLUMNS = [
    "run_name", "strategy", "task", "model", "devices", "nodes", "cpu_threads", "replicas", "pipeline_stages",
    "micro_batches", "global_batch_size", "micro_batch_size", "forward_samples", "precision", "max_seq_length", "seed",
    "optimizer_steps", "samples", "runtime_s", "throughput_samples_per_s", "throughput_tokens_per_s", "validation_loss",
    "exact_match", "f1", "accuracy", "gpu_utilization_pct", "cpu_utilization_pct", "peak_memory_gib",
    *FROM_NOISE, "noise_scale_negative_pct",
    "reference_batch_size", "bubble_pct", "bubble_sd_pct", "bubble_schedule_pct", "imbalance_pct", "workload",
    "hardware", "mfu_pct", "hfu_pct", "model_flops_per_sample", "peak_tflops", *ENERGY, *STAGE_TIMES, *PROFILED,
    "data_s_per_step", "target_f1", "target_loss", "time_to_target_s", "samples_to_target",
    "published_stats_efficiency", "published_goodput", "schedule", "tuned_by", "accuracy_mismatched", "perplexity",
    "epoch_s", "epoch_workload", "skipped_steps", "deepspeed_settings", *INTERVALS, "sampled_steps",
    "effective_sampled_steps", *CODE_COLUMNS, *MACHINE, COMPLETE,
]
# The flags behind the column `workload`: what is trained and how it is judged. With the data and the model they make
# two runs comparable.
WORKLOAD_FLAGS = ("task", "model", "from_scratch", "tokenizer", "max_train_examples", "max_eval_examples",
                  "max_seq_length", "doc_stride", "answerable_only", "length_grouping", "global_batch_size", "epochs",
                  "max_steps", "learning_rate", "lr_scheduler", "warmup_steps", "weight_decay", "max_grad_norm",
                  "adam_epsilon", "skip_nonfinite", "dropout", "precision", "tf32", "compile", "reference_batch_size",
                  "eval_steps", "noise_scale_steps")
# Keys of a DeepSpeed config that flags decide; other columns and the workload hash cover them.
DECIDED_BY_FLAGS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                    "gradient_clipping", "optimizer", "fp16", "bf16", "torch_autocast", "zero_force_ds_cpu_optimizer",
                    "zero_optimization.stage", "zero_optimization.offload_optimizer.device",
                    "zero_optimization.zero_hpz_partition_size", "autotuning",
                    "pipeline.activation_checkpoint_interval")


def evaluation_columns(metrics: tuple[str, ...]) -> list[str]:
    """The columns of evaluations.csv for a task with these metrics."""
    return ["step", "elapsed_s", "samples", "validation_loss", *metrics]


def epoch_columns(metrics: tuple[str, ...]) -> list[str]:
    """The columns of epochs.csv, which has a row for each completed epoch."""
    return ["epoch", "step", "samples", "epoch_s", "train_loss", "validation_loss", *metrics]


def deepspeed_settings(config: dict | None) -> str | None:
    """Settings of a DeepSpeed config that no flag decides: `block.key=value; ...`, sorted; None without a config."""
    def flat(block: dict, prefix: str = "") -> Iterator[str]:
        for key, value in block.items():
            if prefix + key in DECIDED_BY_FLAGS:
                continue
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                is_whole = isinstance(value, float) and value.is_integer()  # 5e8 is 500000000
                yield f"{prefix}{key}={json.dumps(int(value) if is_whole else value)}"

    return None if config is None else "; ".join(sorted(flat(config))) or "default"

"""The files of a run, and their columns. A value that is not known is an empty field: never 0, never a guess."""

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

STEP_COLUMNS = ["step", "elapsed_s", "step_s", "data_s", "samples", "real_tokens", "padded_tokens", "train_loss",
                "learning_rate", "grad_norm", "micro_batch_squared_norm", "batch_squared_norm"]
DEVICE_COLUMNS = ["elapsed_s", "device", "utilization_pct", "memory_gib", "power_w", "temperature_c", "sm_clock_mhz",
                  "throttled"]
ENERGY = ["energy_j", "energy_j_per_1000_samples", "power_w", "temperature_c", "throttled_pct"]
# Seconds of one measured step of a pipeline's stage, by what DeepSpeed's instructions do.
STAGE_TIMES = [f"{kind}_s_per_step" for kind in ("forward", "backward", "send", "receive", "reduce", "optimizer")]
PROFILED = ["collective_s_per_step", "collective_mib_per_step", "point_to_point_s_per_step",
            "point_to_point_mib_per_step", "exposed_communication_s_per_step", "host_cpu_s_per_step",
            "device_s_per_step"]
RANK_COLUMNS = ["rank", "node", "device", "replica", "stage", "parameters", "peak_memory_gib", "gpu_utilization_pct",
                "power_w", "energy_j", "temperature_c", "throttled_pct", "data_s_per_step", *STAGE_TIMES,
                "idle_s_per_step", *PROFILED]
COMPLETE, YES = "complete", "yes"  # the last column of summary.csv and its value: a row without it was cut off
SUMMARY_COLUMNS = [
    "run_name", "strategy", "task", "model", "devices", "nodes", "cpu_threads", "replicas", "pipeline_stages",
    "micro_batches", "global_batch_size", "micro_batch_size", "forward_samples", "precision", "max_seq_length", "seed",
    "optimizer_steps", "samples", "runtime_s", "throughput_samples_per_s", "throughput_tokens_per_s", "validation_loss",
    "exact_match", "f1", "accuracy", "gpu_utilization_pct", "cpu_utilization_pct", "peak_memory_gib",
    "noise_scale_samples", "statistical_efficiency", "goodput_samples_per_s", "noise_scale_negative_pct",
    "reference_batch_size", "bubble_pct", "bubble_schedule_pct", "imbalance_pct", "workload", "hardware", "mfu_pct",
    "hfu_pct", "model_flops_per_sample", "peak_tflops", *ENERGY, *STAGE_TIMES, *PROFILED, "data_s_per_step",
    "target_f1", "target_loss", "time_to_target_s", "samples_to_target", "published_stats_efficiency",
    "published_goodput", "schedule", "tuned_by", "accuracy_mismatched", "perplexity", "epoch_s", "epoch_workload",
    "skipped_steps", "deepspeed_settings", COMPLETE,
]
# Of a DeepSpeed config as it was used: what flags decide, which other columns and the workload cover.
DECIDED_BY_FLAGS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                    "gradient_clipping", "optimizer", "fp16", "bf16", "torch_autocast", "zero_force_ds_cpu_optimizer",
                    "zero_optimization.stage", "zero_optimization.offload_optimizer.device", "autotuning")


def evaluation_columns(metrics: tuple[str, ...]) -> list[str]:
    """Columns of evaluations.csv for a task with these metrics."""
    return ["step", "elapsed_s", "samples", "validation_loss", *metrics]


def epoch_columns(metrics: tuple[str, ...]) -> list[str]:
    """Columns of epochs.csv, which has a row for each epoch that was trained to its end."""
    return ["epoch", "step", "samples", "epoch_s", "train_loss", "validation_loss", *metrics]


def deepspeed_settings(config: dict | None) -> str | None:
    """What a DeepSpeed config sets besides what flags decide: `block.key=value; ...`, sorted; None without a config."""
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


class Table:
    """A CSV file that is written row by row while the run goes; on a full disk it ends with a whole row.

    Args:
        goes_on: behind the rows that are there.
    """

    def __init__(self, path: Path, columns: list[str], goes_on: bool = False) -> None:
        # Without a buffer: what it kept of a row that failed would follow later.
        self.file = open(path, "ab" if goes_on else "wb", buffering=0)
        self.row = io.StringIO()
        self.writer = csv.DictWriter(self.row, columns, restval="", lineterminator="\n")
        if not goes_on:
            self.writer.writeheader()
            self._write_row()

    def add(self, **row) -> None:
        self.writer.writerow({name: "" if value is None else value for name, value in row.items()})
        self._write_row()

    def _write_row(self) -> None:
        rest, end = self.row.getvalue().encode(), self.file.tell()
        self.row.seek(0)
        self.row.truncate()
        try:
            while rest:
                rest = rest[self.file.write(rest):]  # on the last bytes of a disk it takes but a part
        except OSError as error:
            self.file.truncate(self.file.seek(end))
            error.filename = self.file.name
            raise

    def close(self) -> None:
        self.file.close()


def utc_time(seconds: float) -> str:
    """A moment, in seconds since the epoch, as ISO 8601 writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def write_json(path: Path, content: dict) -> None:
    """See `write_whole`."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never a half, also if the disk is full."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Names of files may hold bytes that are not UTF-8; in JSON what replaces them says the same.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def keep_room(path: Path, content: dict) -> None:
    """Keep the room that a later version of this JSON file takes, so that it can be written when the disk is full."""
    write_json(_room(path), content | {"room": " " * 4096})


def free_room(path: Path) -> None:
    """What was kept may be used now."""
    with contextlib.suppress(OSError):
        _room(path).unlink(missing_ok=True)


def _room(path: Path) -> Path:
    return path.with_name(f".{path.name}.room")

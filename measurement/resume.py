"""Resuming a run from a checkpoint: rows of later steps are dropped, and earlier measurements are kept and counted."""

import dataclasses
from pathlib import Path
from typing import Any

import torch.distributed as dist

from measurement.clock import Work
from measurement.columns import deepspeed_settings
from measurement.redaction import without_secrets
from measurement.run_json import RESUMABLE_FLAGS
from measurement.run_result import Progress
from measurement.table import truncate_after
from workload.batches import OrderHash
from workload.checkpoints import Checkpoint
from workload.errors import InputError
from workload.job import Job
from workload.training_state import TrainingState


def join_earlier_attempts(job: Job, checkpoint: Checkpoint, digests: dict) -> None:
    """Move a job's start back by the time that its earlier attempts took; call on every rank.

    Args:
        digests: of model, tokenizer and data; see `workload.digests`.

    Raises:
        InputError: they trained something else; names what differs.
    """
    flags = without_secrets(job.resolved_flags())
    before, where = checkpoint.state["flags"], f"--resume: {job.folder}"
    for name in RESUMABLE_FLAGS:
        if before[name] != flags[name]:
            raise InputError(f"{where} began with --{name} {before[name]}, not {flags[name]}; give the same, or "
                             "another --run_name")
    begun = checkpoint.state | checkpoint.state.get("content", {})  # earlier commits: "data" only, and only of files
    for what in ("model", "tokenizer"):
        if begun.get(what, digests[what]) != digests[what]:
            raise InputError(f"{where} began with another {what}, whose files differ; use the same files, or another "
                             "--run_name")
    if begun["data"] != {split: digests["data"].get(split) for split in begun["data"]}:
        raise InputError(f"{where} began with other data; use the same files, or another --run_name")
    seconds = [_seconds_so_far(job.folder) if job.processes.is_main else 0.0]
    dist.broadcast_object_list(seconds)
    job.started_at -= seconds[0]


def _seconds_so_far(folder: Path) -> float:
    """How long all earlier attempts ran together, up to the last row that they wrote."""
    seconds = 0.0
    for name in ("steps.csv", "evaluations.csv", "devices.csv"):
        if (folder / name).exists():
            seconds = max([seconds, *(float(row["elapsed_s"]) for row in truncate_after(folder / name, None))])
    return seconds


def checkpoint_state(job: Job, deepspeed_config: dict | None, digests: dict, progress: Progress) -> dict[str, Any]:
    """What a checkpoint holds besides the training's state and the recorder's; call on every rank.

    Args:
        digests: of model, tokenizer and data.
        progress: this rank's.
    """
    ranks: list[Progress] = [progress] * job.processes.count
    dist.all_gather_object(ranks, progress)
    return {"flags": without_secrets(job.resolved_flags()), "content": digests,
            "setting": job.setting, "deepspeed_settings": deepspeed_settings(without_secrets(deepspeed_config)),
            "consumed": [progress.samples, progress.real_tokens, progress.padded_tokens],
            "order": OrderHash.combine([rank.order_total for rank in ranks]), "throughput_s": progress.throughput_s,
            "work": dataclasses.asdict(progress.work), "data_s": [rank.work.data_s for rank in ranks]}


def keeps_measurements(job: Job, checkpoint: Checkpoint, deepspeed_config: dict | None) -> bool:
    """Whether earlier measurements count as this run's: strategy, devices and DeepSpeed settings are the same.

    Args:
        deepspeed_config: of this attempt.
    """
    state = checkpoint.state
    settings = deepspeed_settings(without_secrets(deepspeed_config))
    return state["setting"] == job.setting and state.get("deepspeed_settings") == settings


def restore(job: Job, checkpoint: Checkpoint, deepspeed_config: dict | None, training: TrainingState) -> Progress:
    """Put the checkpoint's values into what is trained; returns this rank's progress. Call on every rank."""
    state = checkpoint.state
    training.restore(checkpoint.folder, state["training"], state["setting"] == job.setting)
    throughput_s, work = 0.0, Work()
    if keeps_measurements(job, checkpoint, deepspeed_config):
        throughput_s = state["throughput_s"]
        work = Work(**state["work"] | {"data_s": state["data_s"][job.processes.rank]})
    samples, real_tokens, padded_tokens = state["consumed"]
    order_total = int(state["order"], 16) if job.processes.is_main else 0
    return Progress(checkpoint.step, samples, real_tokens, padded_tokens, order_total, throughput_s, work)

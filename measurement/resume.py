"""How a run goes on from a checkpoint: what later steps wrote is dropped, what came before is kept and counts."""

import csv
import dataclasses
import json
from pathlib import Path

import torch.distributed as dist

from measurement.clock import Work
from measurement.redaction import without_secrets
from measurement.results import deepspeed_settings, write_whole
from measurement.run_json import RESUMABLE_FLAGS
from workload.errors import InputError
from workload.job import Job
from workload.training_state import TrainingState


def cut_back(path: Path, last_step: int | None) -> list[dict[str, str]]:
    """Drop the rows of later steps, and one that was broken off, from a CSV file; gives those that stay.

    Args:
        last_step: None for a file whose rows have no step: all stay.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.readlines()
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    rows = list(csv.DictReader(lines))
    kept = sum(1 for row in rows if last_step is None or int(row["step"]) <= last_step)
    write_whole(path, "".join(lines[:1 + kept]))
    return rows[:kept]


def _seconds_so_far(folder: Path) -> float:
    """How long a run was at work, all its attempts together, as far as its files know."""
    seconds = 0.0
    for name in ("steps.csv", "evaluations.csv", "devices.csv"):
        if (folder / name).exists():
            seconds = max([seconds, *(float(row["elapsed_s"]) for row in cut_back(folder / name, None))])
    return seconds


def continued(description: dict, folder: Path) -> dict:
    """What run.json says of a run that goes on: since when, and by which attempts, the last of which is described."""
    earlier = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return description | {"started": earlier["started"], "attempts": earlier["attempts"] + description["attempts"]}


def join_earlier_attempts(job: Job, content: dict) -> None:
    """Let a job's clock go on where its earlier attempts ended.

    Args:
        content: digests of model, tokenizer and data; see `workload.digests`.

    Raises:
        InputError: they did another job; names what differs.
    """
    checkpoint, flags = job.checkpoint, without_secrets(job.resolved_flags())
    before, where = checkpoint.state["flags"], f"--resume: {job.folder}"
    for name in RESUMABLE_FLAGS:
        if before[name] != flags[name]:
            raise InputError(f"{where} began with --{name} {before[name]}, not {flags[name]}; give the same, or "
                             "another --run_name")
    begun = checkpoint.state | checkpoint.state.get("content", {})  # earlier commits: "data" only, and only of files
    for what in ("model", "tokenizer"):
        if begun.get(what, content[what]) != content[what]:
            raise InputError(f"{where} began with another {what}, whose files differ; use the same files, or another "
                             "--run_name")
    if begun["data"] != {split: content["data"].get(split) for split in begun["data"]}:
        raise InputError(f"{where} began with other data; use the same files, or another --run_name")
    seconds = [_seconds_so_far(job.folder) if job.processes.is_main else None]
    dist.broadcast_object_list(seconds)
    job.started_at -= seconds[0]


def state_of(run) -> dict | None:
    """What a checkpoint says besides the training's state, on the main rank; to be called on every rank."""
    totals = [None] * run.processes.count
    dist.all_gather_object(totals, (run.order.total, run.throughput.work.data_s))
    return run.is_main and {
        "flags": without_secrets(run.job.resolved_flags()), "content": run.content,
        "setting": run.job.setting, "deepspeed_settings": deepspeed_settings(without_secrets(run.deepspeed_config)),
        "consumed": [run.samples, run.real_tokens, run.padded_tokens],
        "order": run.order.combine([order for order, _ in totals]), "throughput_s": run.throughput.seconds,
        "work": dataclasses.asdict(run.throughput.work), "data_s": [data_s for _, data_s in totals],
        "record": run.record.state()}


def counts_on(job: Job, deepspeed_config: dict | None) -> bool:
    """Whether earlier measurements count as this run's: strategy, devices and DeepSpeed settings are the same.

    Args:
        deepspeed_config: of this attempt.
    """
    state = job.checkpoint.state
    settings = deepspeed_settings(without_secrets(deepspeed_config))
    return state["setting"] == job.setting and state.get("deepspeed_settings") == settings


def put_back(run, training: TrainingState) -> None:
    """Resume a run, and what it trains, from its job's checkpoint; on every rank."""
    checkpoint, state = run.job.checkpoint, run.job.checkpoint.state
    training.restore(checkpoint.folder, state["training"], state["setting"] == run.job.setting)
    run.step = checkpoint.step
    run.samples, run.real_tokens, run.padded_tokens = state["consumed"]
    run.order.total = int(state["order"], 16) if run.is_main else 0
    if counts_on(run.job, run.deepspeed_config):
        run.throughput.seconds = state["throughput_s"]
        run.throughput.work = Work(**state["work"] | {"data_s": state["data_s"][run.processes.rank]})

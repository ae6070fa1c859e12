"""run.json: what is needed to repeat a run and to know what it compares with, and how the run ended.

Nothing else writes this file. Rank 0 creates and finishes it; any rank may mark the run as stopped or failed.
"""

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from measurement.columns import CODE_COLUMNS, WORKLOAD_FLAGS
from measurement.environment import (
    ARITHMETIC,
    DIGEST_LENGTH,
    GIB,
    SPEED,
    cpu_name,
    file_digest,
    git_state,
    own_settings,
    path_in_project,
    source_digest,
    versions,
)
from measurement.machine_state import load_average
from measurement.redaction import without_secrets
from workload.atomic_files import write_json
from workload.digests import json_digest
from workload.job import Job
from workload.launch import launcher
from workload.malloc import malloc_settings
from workload.tasks.limits import DRAW_SEED

RESUMABLE_FLAGS = (*WORKLOAD_FLAGS, "seed")  # these must not change when a run is resumed
# Workload flags that depend on the global batch, or set the number of epochs. The work of one epoch is the same.
BATCH_FLAGS = ("global_batch_size", "epochs", "max_steps", "warmup_steps", "eval_steps", "noise_scale_steps")


class RunJson:
    """run.json of a run that begins, on rank 0.

    Args:
        content: what `describe_run` returned.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        reserve_space(path, content)
        write_json(path, content)

    def finish(self, order_hash: str, empty: dict[str, str], peak_tflops_source: str,
               matrix_product_s: list[float | None]) -> None:
        """Set the status to "finished".

        Args:
            matrix_product_s: of each rank, after training.
            order_hash: of the samples consumed, see `OrderHash`.
            empty: why columns of the summary are empty.
        """
        release_space(self.path)
        write_json(self.path, self.content | {
            "at_the_end": {"load_average": load_average(), "matrix_product_s": matrix_product_s},
            "status": "finished", "ended": utc_time(time.time()), "empty": empty, "order_hash": order_hash,
            "peak_tflops_source": peak_tflops_source})


def mark_ended(path: Path, status: str, reason: str) -> None:
    """Set the status of a run that is still "running". The first rank that ends badly states the reason."""
    release_space(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "running":
            write_json(path, content | {"status": status, "reason": without_secrets(reason.split("\n")[0]),
                                        "ended": utc_time(time.time())})
    except OSError:
        pass  # the run has not begun, or the disk is full; then the error that brought us here says so


def describe_run(job: Job, ranks: list[dict], deepspeed_config: dict | None, digests: dict,
                 note: str | None) -> dict[str, Any]:
    """What run.json says of a run that begins or is resumed; secrets are hidden.

    Args:
        ranks: each rank's devices, and the part of the model that it holds.
        deepspeed_config: as given to DeepSpeed, if it is used.
        digests: of model, tokenizer and data; see `workload.digests`.
        note: a remark about this run.
    """
    task, flags, config = job.task, job.resolved_flags(), without_secrets(deepspeed_config)
    command = shlex.join([os.path.basename(sys.argv[0]), *launcher.without_local_rank(sys.argv[1:])])
    code = {"source_digest": source_digest(), "script_digest": file_digest(Path(sys.argv[0]))}
    git, libraries = git_state(), versions()
    attempt = {"strategy": job.strategy, "devices": job.devices, "command": command, "host": socket.gethostname(),
               "from_step": job.checkpoint.step if job.checkpoint else 0, "load_average": load_average(),
               "matrix_product_s": [rank.get("matrix_product_s") for rank in ranks]}
    of_code = code | (git or {}) | libraries
    content = without_secrets({
        "status": "running", "reason": None, "run_name": job.folder.name, "strategy": job.strategy,
        "command": command, "flags": flags,
        "deepspeed_config": config,
        "deepspeed_config_digest": None if config is None else json_digest(config)[:DIGEST_LENGTH],
        "workload": workload_hash(flags, digests),
        "epoch_workload": workload_hash(flags, digests, without=BATCH_FLAGS),
        "model": {"sha256": digests["model"], "hub_commit": digests["hub_commit"],
                  "family": task.config.model_type, **task.model_record},
        "tokenizer": {"sha256": digests["tokenizer"]},
        "data": {split: {"file": path and path_in_project(path), "sha256": digests["data"][split],
                         "examples": len(task.examples[split]), "samples": len(task.features[split]),
                         "draw": task.draws[split]}
                 for split, path in task.files.items()},
        **code, "git": git, "versions": libraries, "host": socket.gethostname(),
        "cpu": {"name": cpu_name(), "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / GIB, 2), "malloc": malloc_settings()},
        "environment": own_settings(ARITHMETIC, SPEED),
        "parameters": sum(rank["parameters"] for rank in ranks if rank["replica"] == 0),
        "attempts": [attempt | {name: of_code.get(name) for name in CODE_COLUMNS}],
        "ranks": ranks, "order_hash": None, "empty": {}, "started": utc_time(job.started_at), "ended": None,
        **({"note": note} if note else {}),
    })
    if job.checkpoint:
        earlier = json.loads((job.folder / "run.json").read_text(encoding="utf-8"))
        content |= {"started": earlier["started"], "attempts": earlier["attempts"] + content["attempts"]}
    return content


def workload_hash(flags: dict, digests: dict, without: tuple[str, ...] = ()) -> str:
    """Eight hex digits that two runs share if they train and judge the same thing, whatever the strategy and the seed.

    Args:
        digests: of model, tokenizer and data, used in place of their names.
        without: flags in which they may differ.
    """
    content = ({name: flags[name] for name in WORKLOAD_FLAGS if name not in without}
               | {name: digests[name] for name in ("model", "tokenizer", "data")}
               | {"arithmetic": own_settings(ARITHMETIC)})
    if flags["max_train_examples"] or flags["max_eval_examples"]:
        content["draw"] = DRAW_SEED  # in older records a limit kept the first N examples
    return json_digest(content)[:8]


def utc_time(seconds: float) -> str:
    """A time in seconds since the epoch, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def reserve_space(path: Path, content: dict) -> None:
    """Reserve disk space for the final run.json, so that a full disk cannot stop us recording the failure."""
    write_json(_reserve(path), content | {"room": " " * 4096})


def release_space(path: Path) -> None:
    """Make the reserved space available."""
    with contextlib.suppress(OSError):
        _reserve(path).unlink(missing_ok=True)


def _reserve(path: Path) -> Path:
    return path.with_name(f".{path.name}.room")

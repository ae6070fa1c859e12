"""run.json: everything that is needed to run a run again, and to know what it may be compared with."""

import hashlib
import json
import os
import shlex
import socket
import sys

import psutil

from measurement.environment import (
    ARITHMETIC,
    GIB,
    SPEED,
    cpu_name,
    git_state,
    own_settings,
    path_in_project,
    versions,
)
from measurement.redaction import without_secrets
from measurement.results import utc_time
from workload.job import Job
from workload.launch import launcher
from workload.malloc import malloc_settings
from workload.tasks.limits import DRAW_SEED

# Flags that say what is trained and how it is judged; with the data and the model they make two runs comparable.
WORKLOAD_FLAGS = ("task", "model", "from_scratch", "tokenizer", "max_train_examples", "max_eval_examples",
                  "max_seq_length", "doc_stride", "answerable_only", "length_grouping", "global_batch_size", "epochs",
                  "max_steps", "learning_rate", "lr_scheduler", "warmup_steps", "weight_decay", "max_grad_norm",
                  "adam_epsilon", "skip_nonfinite", "dropout", "precision", "tf32", "compile", "reference_batch_size",
                  "eval_steps", "noise_scale_steps")
RESUMABLE_FLAGS = (*WORKLOAD_FLAGS, "seed")  # in which a run that goes on must agree with its beginning
# Those of them that change with the global batch, or say how many epochs there are: the work of an epoch is the same.
BATCH_FLAGS = ("global_batch_size", "epochs", "max_steps", "warmup_steps", "eval_steps")


def describe(job: Job, ranks: list[dict], deepspeed_config: dict | None, content: dict) -> dict:
    """What run.json says of a run that begins; nothing that is a secret.

    Args:
        ranks: of each rank its device, and the part of the model that it holds.
        deepspeed_config: as given to DeepSpeed, if it takes part.
        content: digests of model, tokenizer and data; see `workload.digests`.
    """
    task, flags = job.task, job.resolved_flags()
    command = shlex.join([os.path.basename(sys.argv[0]), *launcher.without_local_rank(sys.argv[1:])])
    return without_secrets({
        "status": "running", "reason": None, "run_name": job.folder.name, "strategy": job.strategy,
        "command": command, "flags": flags,
        "deepspeed_config": deepspeed_config, "workload": workload_hash(flags, content),
        "epoch_workload": workload_hash(flags, content, without=BATCH_FLAGS),
        "model": {"sha256": content["model"], "hub_commit": content["hub_commit"], **task.model_record},
        "tokenizer": {"sha256": content["tokenizer"]},
        "data": {split: {"file": path and path_in_project(path), "sha256": content["data"][split],
                         "examples": len(task.examples[split]), "samples": len(task.features[split]),
                         "draw": task.draws[split]}
                 for split, path in task.files.items()},
        "git": git_state(), "versions": versions(), "host": socket.gethostname(),
        "cpu": {"name": cpu_name(), "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / GIB, 2), "malloc": malloc_settings()},
        "environment": own_settings(ARITHMETIC, SPEED),
        "parameters": sum(rank["parameters"] for rank in ranks if rank["replica"] == 0),
        "attempts": [{"strategy": job.strategy, "devices": job.devices, "command": command,
                      "host": socket.gethostname(), "from_step": job.checkpoint.step if job.checkpoint else 0}],
        "ranks": ranks, "order_hash": None, "empty": {}, "started": utc_time(job.started_at), "ended": None,
    })


def workload_hash(flags: dict, content: dict, without: tuple[str, ...] = ()) -> str:
    """Eight digits that two runs share if they train and judge the same thing, whatever the strategy and the seed.

    Args:
        content: digests of model, tokenizer and data, in place of their names.
        without: flags in which they may differ.
    """
    content = ({name: flags[name] for name in WORKLOAD_FLAGS if name not in without}
               | {name: content[name] for name in ("model", "tokenizer", "data")}
               | {"arithmetic": own_settings(ARITHMETIC)})
    if flags["max_train_examples"] or flags["max_eval_examples"]:
        content["draw"] = DRAW_SEED  # in older records a limit kept the first N examples
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

"""The folder that a run writes to: its name, and whether the flags and what it holds go together."""

import json
import os
import sys
from pathlib import Path

from workload.arguments import Arguments
from workload.batches import BatchSplit
from workload.errors import InputError
from workload.launch import launcher
from workload.storage import check_cache, check_writable

# Flags that say how to run, not what to train; they may change on --resume.
HOW_TO_RUN = {"resume", "overwrite", "checkpoint_steps", "hang_timeout_s", "output_dir", "run_name", "report_to"}


def output_folder(arguments: Arguments, strategy: str, devices: int, stages: int, batch_split: BatchSplit,
                  precision: str) -> Path:
    """The run's folder. Only rank 0 checks whether it exists: the others may get here after it was created.

    Raises:
        InputError: it cannot be written to, or holds something other than the flags expect.
        SystemExit: the run is finished already.
    """
    from workload.tasks.registry import TASKS

    model = os.path.basename(os.path.normpath(arguments.model or TASKS[arguments.task].default_model))
    schedule = getattr(arguments, "schedule", None)
    name = arguments.run_name or "-".join([
        arguments.task, model, strategy, *([schedule] if schedule else []),
        f"{devices}dev", *([f"{launcher.nodes()}nodes"] if launcher.nodes() > 1 else []),
        *([f"{stages}stages", f"{batch_split.micro_batches}micro"] if stages > 1 else []),
        *([f"groups{devices // batch_split.replicas}"] if hasattr(arguments, "tensor_parallel") else []),
        f"batch{arguments.global_batch_size}", precision, f"seed{arguments.seed}"])
    folder = Path(arguments.output_dir) / name
    check_writable(folder)
    check_cache()
    if arguments.resume != "never" and (folder / "run.json").is_file():
        _end_if_finished(folder, arguments)
    if launcher.rank() == 0:
        _check_folder(folder, arguments)
    return folder


def _check_folder(folder: Path, arguments: Arguments) -> None:
    """Refuse a folder that holds something other than the flags expect."""
    is_free = not folder.exists() or folder.is_dir() and not any(folder.iterdir())
    if is_free and arguments.resume == "always":
        raise InputError(f"--resume: {folder} holds no run; --resume auto begins one")
    if is_free:
        return
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder} exists and is not a run's folder, so it is not overwritten; give another "
                         "--run_name")
    if arguments.resume == "never" and not arguments.overwrite:
        raise InputError(f"{folder} exists; give another --run_name, --resume, or --overwrite")


def _end_if_finished(folder: Path, arguments: Arguments) -> None:
    """End here if this run is finished already; on every rank, so that none waits for one that has ended."""
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if description["status"] != "finished":
            return
    except (ValueError, TypeError, KeyError):
        raise InputError(f"--resume: {folder / 'run.json'} cannot be read; --overwrite replaces the run") from None
    for name in arguments.given - HOW_TO_RUN:
        asked, done = getattr(arguments, name), description["flags"].get(name)
        if asked != done:
            raise InputError(f"--resume: {folder} is finished, with --{name} {done}, not {asked}; give another "
                             "--run_name")
    if launcher.rank() == 0:
        print(f"{folder} is finished")
    sys.exit(0)

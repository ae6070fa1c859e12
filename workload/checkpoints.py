"""A run's checkpoints: folders `checkpoints/step-N` of safetensors files, each with a `state.json` that describes it.

Each is written under another name and renamed when it is whole; the last two are kept. Reading one runs no code.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from workload.atomic_files import write_json
from workload.training_state import TrainingState

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, to resume from."""

    step: int  # the last completed step
    folder: Path
    state: dict  # the content of `state.json`


def write_checkpoint(run_folder: Path, step: int, training: TrainingState, more: dict, is_main: bool) -> None:
    """Write the state after `step`; to be called on every rank.

    Args:
        more: further entries for `state.json`, on the main rank.

    Raises:
        OSError: the disk is full; nothing of this checkpoint is left, and the earlier ones are untouched.
    """
    folder = run_folder / "checkpoints" / f"step-{step}"
    aside = folder.with_name(f".{folder.name}.unfinished")
    if is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        saved = training.save(aside)
        if is_main:
            write_json(aside / "state.json", {"step": step, **more, "training": saved, "files": _digests(aside)})
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    except OSError:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    if is_main:
        for old in _folders(run_folder)[KEPT:]:
            shutil.rmtree(old)
    dist.barrier()


def newest_checkpoint(run_folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None; each broken one is named in a line on stderr."""
    for folder in _folders(run_folder):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            broken = [name for name, digest in _digests(folder).items() if state["files"].pop(name, None) != digest]
            broken += state["files"]  # the missing ones
            if not broken:
                return Checkpoint(state["step"], folder, state)
            reason = f"{broken[0]} has changed since it was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            reason = "its state.json cannot be read"
        print(f"{folder}: skipped, {reason}", file=sys.stderr, flush=True)
    return None


def _folders(run_folder: Path) -> list[Path]:
    """The newest first."""
    folders = [path for path in run_folder.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of tensors."""
    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests

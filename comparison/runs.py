"""Find run folders and read them: run.json, summary.csv and the curves."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from comparison.csv_files import as_number, is_empty, read_columns, shown
from comparison.progress import progress_bar, tell
from comparison.study import DRIFT, LIBRARIES, OTHERS, Study
from measurement.columns import INTERVALS, YES, deepspeed_settings

NEEDED = ["strategy", "task", "model", "devices", "global_batch_size", "seed", "runtime_s"]
LOWER_CASE = ["task", "precision", "schedule", "tuned_by", "dirty"]  # a run writes only lower case there
# Columns that run.json may repeat. A spreadsheet takes some hashes for numbers (1e10 becomes 1.00E+10).
IN_RUN_JSON = ["workload", "epoch_workload", "source_digest", "script_digest", "commit", *LIBRARIES]
NORMS = ["micro_batch_squared_norm", "batch_squared_norm"]  # columns of steps.csv
NOISE = "noise"  # the curve of both
DIGITS = 8  # of a commit, in headings and names
BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # break lines, are invisible or not text
TRIAL = {"exp.json", "ds_config.json"}  # files in the folder of a trial by DeepSpeed's autotuner
TRIAL_RECORD = "run"  # the trial's own record below that folder, which is not a run to compare


class Run(NamedTuple):
    summary: dict
    curves: dict[str, pd.DataFrame]  # column -> its values and those of its axes; a run may lack any
    description: Mapping[str, Any] = MappingProxyType({})  # run.json
    folder: Path = Path()


def left_out(path: Path, reason: object) -> None:
    """Say on standard error, in one line, what is not compared and why."""
    tell(f"left out {path}: {' '.join(str(reason).split())}")


def read_description(folder: Path) -> dict:
    """The content of run.json.

    Raises:
        ValueError: it cannot be read, or the run is not finished.
    """
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        status = description["status"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("run.json is missing or is not JSON with a status") from None
    if status != "finished":
        raise ValueError(f"not finished, its status is {shown(status)}")
    return description


def code_of(summary: dict) -> str | None:
    """Identifies the code in workload/ and measurement/ that made a run; None if nothing recorded does.

    A run that was resumed with other code has several digests. Runs from before `source_digest` are identified by their
    commit, and by whether they had uncommitted changes.
    """
    if pd.notna(digest := summary["source_digest"]):
        return digest
    if pd.isna(commit := summary["commit"]):
        return None
    return f"of commit {commit[:DIGITS]}" + (" with uncommitted changes" if summary["dirty"] == YES else "")


def recorded_versions(description: dict) -> dict[str, str | None]:
    """Digests, commit and library versions as run.json has them; None where it does not say."""
    parts = [description, *(description.get(key) for key in ("git", "versions"))]
    found = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    texts = {column: found.get(column) for column in IN_RUN_JSON}
    texts = {column: text if isinstance(text, str) and text else None for column, text in texts.items()}
    dirty = found.get("dirty")
    return texts | {"dirty": YES if dirty is True else "no" if dirty is False else None}


def read_summary(folder: Path, description: dict, study: Study) -> dict:
    """The row of summary.csv, with numbers converted and names spelled as runs write them.

    Raises:
        ValueError: names the column whose value is missing or not usable.
    """
    columns = read_columns(folder / "summary.csv")
    if (rows := len(next(iter(columns.values()), []))) != 1:
        raise ValueError(f"summary.csv has {rows} rows, not one")
    cells = {column: cell for column, [cell] in columns.items()}
    if missing := [column for column in NEEDED if is_empty(cells.get(column, ""))]:
        raise ValueError(f"summary.csv has no {', '.join(missing)}")
    row: dict[str, Any] = {column: np.nan if is_empty(cell) else cell for column, cell in cells.items()}
    if not re.fullmatch(r"[0-9]{1,20}", row["seed"]):  # such as 0.0, as a spreadsheet may write it
        row["seed"] = as_number(row["seed"], "seed", "summary.csv", whole=True, smallest=0)
    row["seed"] = int(row["seed"])
    flags, config = description.get("flags"), description.get("deepspeed_config")
    is_bare = isinstance(flags, dict) and flags.get("measure") == "throughput"
    row["measure"] = "throughput" if is_bare else "all"
    if "deepspeed_settings" not in row:  # the run is older than this column
        row["deepspeed_settings"] = deepspeed_settings(config if isinstance(config, dict) else None)
    whole = set(study.whole_numbers)
    numbers = {*study.measured, *study.targets, *whole, *INTERVALS, "peak_tflops", "energy_j", DRIFT, *OTHERS}
    for column in [column for column in cells if column in numbers]:
        row[column] = as_number(cells[column], column, "summary.csv", column in whole)
    if "peak_tflops" in row and pd.notna(row["peak_tflops"]):  # part of a row's name
        row["peak_tflops"] = f"{row['peak_tflops']:g}"
    recorded = recorded_versions(description)
    row |= {column: value for column, value in recorded.items() if column not in row}  # the run is older than these
    words = {*recorded, *study.settings} - whole
    for column in [column for column in row if column in words]:
        value, same = row[column], recorded.get(column)
        if BREAKS.search(str(value)):
            raise ValueError(f"summary.csv: {column} is {shown(value)}, not a usable name")
        # A resumed run lists the values of all its attempts, run.json that of the last.
        if column in IN_RUN_JSON and pd.notna(value) and same and same not in value.split(" + "):
            raise ValueError(f"summary.csv: {column} is {shown(value)}, but run.json says {shown(same)}")
        if column in LOWER_CASE and pd.notna(value):
            row[column] = value.lower()
    row["code"] = code_of(row)
    row["family"] = _nested(description, "model", "family")
    row["model_sha256"] = _nested(description, "model", "sha256")
    row["data_sha256"] = _nested(description, "data", "train", "sha256")
    row["gradient_samples"] = row.get("micro_batch_size", np.nan) * devices_of_a_process(description)
    known = {plain(name): name for name in study.strategies}
    strategy = known.get(plain(row["strategy"]), row["strategy"])
    return row | {"strategy": strategy, "folder": BREAKS.sub("?", folder.name)}


def _nested(description: dict, *keys: str) -> str | None:
    """A text within run.json; None if the run is older than it."""
    found: object = description
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def devices_of_a_process(description: dict) -> int:
    """More than 1 for DataParallel, whose micro-batches of all GPUs give one gradient."""
    try:
        return max(len(description["ranks"][0]["devices"]), 1)
    except (KeyError, IndexError, TypeError):  # the run is older than this record
        return 1


def plain(name: str) -> str:
    """Only the letters and digits of a name, in lower case: DDP and ddp, ZeRO-2 and zero2 are the same."""
    return re.sub(r"[\W_]+", "", name.lower()) or name


def read_run(folder: Path, study: Study) -> Run:
    """The run in a folder.

    Raises:
        ValueError: the folder holds no finished run, or one of its files is not usable.
    """
    description = read_description(folder)
    row = read_summary(folder, description, study)
    names = dict.fromkeys([*(curve.file for curve in study.curves), "steps.csv"])
    # A run without curves still has its row in the tables.
    tables = {name: read_columns(folder / name, drop_torn=True) for name in names if (folder / name).is_file()}
    curves = {column: _numbers(tables[name], name, [column, *axes]) for name, column, _, axes in study.curves
              if name in tables}
    if "steps.csv" in tables:
        curves[NOISE] = _numbers(tables["steps.csv"], "steps.csv", ["samples", *NORMS])
    return Run(row, curves, description, folder)


def _numbers(table: dict[str, list[str]], file: str, columns: list[str]) -> pd.DataFrame:
    """Some columns of a file, NaN where they are missing."""
    missing = [""] * len(next(iter(table.values()), []))
    return pd.DataFrame({column: np.array([as_number(cell, column, file) for cell in table.get(column, missing)])
                         for column in columns}, dtype=float)


def folders_below(root: Path, without: Path | None = None, tell: bool = False) -> Iterator[tuple[Path, set[str]]]:
    """Yield root and each folder below it once, with the names of its files; links to folders are followed.

    Hidden folders, `without` and the records of an autotuner's trials are left out.

    Args:
        tell: report on standard error each folder that is left out although it may hold runs.
    """
    def leave_out(path: Path, reason: object) -> None:
        if tell:
            left_out(path, reason)

    seen = set()
    walk = os.walk(root, followlinks=True, onerror=lambda error: leave_out(error.filename, error.strerror))
    for name, folders, files in walk:
        path, place = Path(name), os.path.realpath(name)
        if place in seen or place == str(without) and path != root:
            if place not in seen:
                leave_out(path, f"the project's own reference runs; to see them: python plots.py {path}")
            folders.clear()
            continue
        seen.add(place)
        for hidden in [folder for folder in folders if folder.startswith(".")]:
            if (path / hidden / "run.json").exists():
                leave_out(path / hidden, "its name begins with a dot")
            folders.remove(hidden)
        folders[:] = sorted(folder for folder in folders if folder != TRIAL_RECORD or not set(files) >= TRIAL)
        yield path, set(files)


def find_runs(root: Path, study: Study, without: Path | None = None) -> list[Run]:
    """All usable runs at and below root, except those below `without`.

    Runs that are left out are reported on standard error, each with the reason, and so are unknown strategies.
    """
    runs, unknown = [], {}
    folders = [folder for folder, files in folders_below(root, without, tell=True)
               if {"run.json", "summary.csv"} & files]
    for folder in progress_bar(folders, desc="reading", unit="run"):
        try:
            runs.append(read_run(folder, study))
        except (OSError, ValueError, RecursionError) as error:
            left_out(folder, error)
        else:
            unknown.setdefault(runs[-1].summary["strategy"], folder)
    for name in sorted(name for name in unknown if study.look(name) is None):
        close = difflib.get_close_matches(name, study.strategies, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        tell(f"{unknown[name]}: strategy {shown(name)} is unknown and gets rows of its own{meant}")
    return runs

"""Finds run folders and reads them: run.json, summary.csv and the curves."""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from comparison.csv_files import as_numbers, read_table, shown
from comparison.study import Study
from measurement.columns import deepspeed_settings

NEEDED = ["strategy", "task", "model", "devices", "global_batch_size", "seed", "runtime_s"]
LOWER_CASE = ["task", "precision", "schedule", "tuned_by"]  # every value that a run writes there
HASHES = ["workload", "epoch_workload"]  # a spreadsheet takes some for numbers: 1e10 becomes 1.00E+10
BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # end a line, show as nothing, are no text
TRIAL = {"exp.json", "ds_config.json"}  # DeepSpeed's autotuner writes them beside a trial, which is no run to compare
TRIAL_RECORD = "run"  # the folder of the trial's own record


class Run(NamedTuple):
    summary: dict
    curves: dict[str, pd.DataFrame]  # column -> its values beside the axes; a run may lack any


def left_out(path: Path, reason: object) -> None:
    """Say on standard error, in one line, that something below the results is not compared, and why."""
    print(f"left out {path}: {' '.join(str(reason).split())}", file=sys.stderr)


def read_description(folder: Path) -> dict:
    """run.json of a finished run; ValueError says why it is none."""
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        status = description["status"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("run.json is missing or is not JSON with a status") from None
    if status != "finished":
        raise ValueError(f"not finished, its status is {shown(status)}")
    return description


def read_summary(folder: Path, description: dict, study: Study) -> dict:
    """The row of summary.csv, numbers as such and names as runs write them.

    Raises:
        ValueError: names the column whose value is missing or not usable.
    """
    table = read_table(folder / "summary.csv")
    if len(table) != 1:
        raise ValueError(f"summary.csv has {len(table)} rows, not one")
    if missing := [column for column in NEEDED if column not in table or table[column].isna().any()]:
        raise ValueError(f"summary.csv has no {', '.join(missing)}")
    if not table["seed"].str.fullmatch(r"[0-9]{1,20}").all():  # such as 0.0, as a spreadsheet may write it
        table["seed"] = as_numbers(table["seed"], "summary.csv", whole=True, smallest=0)
    table["seed"] = table["seed"].map(int)
    flags, config = description.get("flags"), description.get("deepspeed_config")
    is_bare = isinstance(flags, dict) and flags.get("measure") == "throughput"
    table["measure"] = "throughput" if is_bare else "all"
    if "deepspeed_settings" not in table:  # of an earlier commit
        table["deepspeed_settings"] = deepspeed_settings(config if isinstance(config, dict) else None)
    for column in table.columns.intersection([*study.measured, *study.targets, *study.whole_numbers, "peak_tflops"]):
        table[column] = as_numbers(table[column], "summary.csv", column in study.whole_numbers)
    if "peak_tflops" in table:  # part of a row's name
        table["peak_tflops"] = table["peak_tflops"].map("{:g}".format, na_action="ignore")
    for column in table.columns.intersection([*HASHES, *study.settings]).difference(study.whole_numbers):
        value, recorded = table[column].iloc[0], description.get(column)
        if BREAKS.search(str(value)):
            raise ValueError(f"summary.csv: {column} is {shown(value)}, not a usable name")
        if column in HASHES and pd.notna(value) and isinstance(recorded, str) and value != recorded:
            raise ValueError(f"summary.csv: {column} is {shown(value)}, but run.json says {shown(recorded)}")
        if column in LOWER_CASE and pd.notna(value):
            table[column] = value.lower()
    known = {plain(name): name for name in study.strategies}
    table["strategy"] = table["strategy"].map(lambda name: known.get(plain(name), name))
    return table.iloc[0].to_dict()


def plain(name: str) -> str:
    """A name's letters and digits alone, so that DDP and ddp, ZeRO-2 and zero2 are the same."""
    return re.sub(r"[\W_]+", "", name.lower()) or name


def read_run(folder: Path, study: Study) -> Run:
    """A finished run; ValueError says why a folder holds none."""
    summary = read_summary(folder, read_description(folder), study)
    curves = {}
    for name, column, _, axes in study.curves:
        if (folder / name).is_file():  # a run without curves still has its row in the tables
            table = read_table(folder / name, drop_torn=True).reindex(columns=[column, *axes])
            curves[column] = pd.DataFrame({axis: as_numbers(table[axis], name) for axis in table})
    return Run(summary, curves)


def folders_below(root: Path, without: Path | None = None, tell: bool = False) -> Iterator[tuple[Path, set[str]]]:
    """root and the folders below it, each once and with its files; links to folders are followed.

    Hidden folders are left out, as are `without` and the records of an autotuner's trials.

    Args:
        tell: name on standard error what is left out although it may hold runs.
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
    """All usable runs at and below root, but for those below `without`.

    The others are named on standard error, each with the reason; so are strategies that the study does not know.
    """
    runs, unknown = [], {}
    for folder, files in folders_below(root, without, tell=True):
        if {"run.json", "summary.csv"} & files:
            try:
                runs.append(read_run(folder, study))
            except (OSError, ValueError, RecursionError) as error:
                left_out(folder, error)
            else:
                unknown.setdefault(runs[-1].summary["strategy"], folder)
    for name in sorted(unknown.keys() - study.strategies.keys()):
        close = difflib.get_close_matches(name, study.strategies, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        print(f"{unknown[name]}: strategy {shown(name)} is unknown and gets rows of its own{meant}", file=sys.stderr)
    return runs

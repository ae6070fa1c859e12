"""Reads run folders: results/<run>/ with run.json, summary.csv and the curves."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from comparison.study import Study

NEEDED = ["strategy", "task", "model", "devices", "global_batch_size", "seed", "runtime_s"]
TEXTS = ["seed", "epoch_workload"]  # besides the settings that are no numbers
SMALLEST, LARGEST = 1e-30, 1e30  # of usable numbers: no sum, square or ratio of theirs leaves what a float can hold
BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # characters that end a line, or show as nothing
MOST_SHOWN = 100
TRIAL = "exp.json"  # DeepSpeed's autotuner writes it for a trial, whose record lies below and is no run of its own


class Run(NamedTuple):
    summary: dict
    curves: dict[str, pd.DataFrame]  # column -> its values beside the axes; a run may lack any


def shown(value: object) -> str:
    """A value as a line about it repeats it, cut where it is long."""
    return repr(value)[:MOST_SHOWN]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as text. ValueError says in words what is wrong with it."""
    try:
        # Text first: a workload such as 1e10 is a name, not a number. And the header as a row of its own: as a header
        # `pandas` lets the first of two columns with one name pass, and takes what a row has too much for its index.
        table = pd.read_csv(path, dtype=str, header=None)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    names = table.iloc[0].dropna()
    if names.duplicated().any():
        raise ValueError(f"{path.name} has the column {shown(names[names.duplicated()].iloc[0])} more than once")
    return table.loc[1:, names.index].set_axis(names.to_list(), axis=1).reset_index(drop=True)


def as_numbers(values: pd.Series, file: str, whole: bool = False) -> pd.Series:
    """Text as numbers, empty as NaN. ValueError names the file, the column and the first value that is neither."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    found, sizes = numbers.to_numpy(), numbers.abs().to_numpy()
    usable = (sizes >= SMALLEST) & (sizes <= LARGEST) | (sizes == 0)
    if whole:
        usable &= (found >= 1) & (found <= 1e9) & (np.floor(found) == found)
    if len(wrong := values[values.notna().to_numpy() & ~usable]):
        raise ValueError(f"{file}: {values.name} is {shown(wrong.iloc[0])}, not a usable number")
    return numbers


def read_run(folder: Path, study: Study) -> Run:
    """A finished run; ValueError says why a folder holds none."""
    try:
        status = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("run.json is missing or is not JSON with a status") from None
    if status != "finished":
        raise ValueError(f"not finished, its status is {shown(status)}")
    summary = read_table(folder / "summary.csv")
    for column in summary.columns.intersection([*study.measured, *study.targets, *study.whole_numbers]):
        summary[column] = as_numbers(summary[column], "summary.csv", column in study.whole_numbers)
    if len(summary) != 1:
        raise ValueError(f"summary.csv has {len(summary)} rows, not one")
    if missing := [column for column in NEEDED if column not in summary or summary[column].isna().any()]:
        raise ValueError(f"summary.csv has no {', '.join(missing)}")
    for column in summary.columns.intersection([*TEXTS, *study.settings]).difference(study.whole_numbers):
        if BREAKS.search(str(summary[column].iloc[0])):
            raise ValueError(f"summary.csv: {column} is {shown(summary[column].iloc[0])}, not a usable name")
    curves = {}
    for name, column, _, axes in study.curves:
        if (folder / name).is_file():  # a run without curves still has its row in the tables
            table = read_table(folder / name).reindex(columns=[column, *axes])
            curves[column] = pd.DataFrame({axis: as_numbers(table[axis], name) for axis in table})
    return Run(summary.iloc[0].to_dict(), curves)


def folders_below(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """root and the folders below it that may hold something to compare, each with its files."""
    for path, folders, files in os.walk(root):
        top = Path(path) == root and root.resolve().name == "results"
        skipped = {"figures", "reference", "published"} if top else {"figures"}
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        if TRIAL in files:
            folders.clear()
        yield Path(path), set(files)


def find_runs(root: Path, study: Study) -> list[Run]:
    """All usable runs at and below root; the others are named on standard error, each with the reason."""
    runs = []
    for folder, files in folders_below(root):
        if {"run.json", "summary.csv"} & files:
            try:
                runs.append(read_run(folder, study))
            except (OSError, ValueError) as error:
                print(f"left out {folder}: {' '.join(str(error).split())}", file=sys.stderr)
    return runs

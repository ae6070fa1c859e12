"""Tables on DeepSpeed's autotuner: end-to-end throughput with its settings, and its measurements in the trials.

The two rates differ. A run's throughput counts all its wall time; the tuner counts, over a few steps of a trial, only
the seconds inside DeepSpeed's forward, backward and step.
"""

import json
import os
from pathlib import Path

import pandas as pd

from comparison import captions
from comparison.csv_files import as_numbers
from comparison.digits import mean_text
from comparison.runs import folders_below, left_out
from comparison.study import Study
from comparison.tables import Part, Table, metrics_table

SUMMARY = "summary.txt"  # written by the tuner
COLUMNS = ["tuning_space", "experiments", "best_value", "best_experiment"]  # our names for its columns
UNITS = {"throughput": " samples/s"}


def end_to_end(group: pd.DataFrame, study: Study) -> list[Part]:
    """Heading and table of the autotuned rows and those on as many devices, with the settings of each."""
    is_tuned = group["tuned_by"] == "autotuner"
    rows = group[group["devices"].isin(group.loc[is_tuned, "devices"])]
    rows = rows.assign(zero_stage=rows["strategy"].str.extract(r"zero(\d)", expand=False))
    return ["### Autotuning: throughput, end to end", metrics_table(rows, study.autotuning)] if len(rows) else []


def read_summary(folder: Path) -> pd.DataFrame:
    """The tuner's summary of its trials: a line per tuning space, with the metric that it optimised.

    Raises:
        ValueError: the summary is not as DeepSpeed writes it, or an experiment's settings are missing.
    """
    lines = (folder / SUMMARY).read_text(encoding="utf-8").splitlines()
    lines = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    if any(len(line) != len(COLUMNS) + 2 or line[-1] for line in lines):  # or text outside the bars
        raise ValueError(f"{SUMMARY} has a line that does not have {len(COLUMNS)} cells")
    table = pd.DataFrame([line[1:-1] for line in lines[2:]], columns=COLUMNS)  # without the titles and their rule
    if table.empty:
        raise ValueError(f"{SUMMARY} has no line for a tuning space")
    table["experiments"] = as_numbers(table["experiments"], SUMMARY, whole=True).astype(int)
    table["best_value"] = as_numbers(table["best_value"], SUMMARY)
    return table.assign(metric=[tuned_metric(folder / name / "ds_config.json") for name in table["best_experiment"]])


def tuned_metric(path: Path) -> str:
    """The metric that an experiment optimised, from its DeepSpeed settings.

    Raises:
        ValueError: the settings do not name it.
    """
    try:
        metric = json.loads(path.read_text(encoding="utf-8"))["autotuning"].get("metric", "throughput")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        metric = None
    if not isinstance(metric, str):
        raise ValueError(f"{path} is not JSON with the settings of an autotuner")
    return metric


def find_tuners(root: Path, without: Path | None = None) -> pd.DataFrame:
    """The summaries of all tuners at and below root, except those below `without`.

    A broken one is reported on standard error, with the reason.
    """
    found = [pd.DataFrame(columns=["folder", *COLUMNS, "metric"])]
    for folder, files in folders_below(root, without):
        if {SUMMARY, "ds_config_optimal.json"} <= files:  # the tuner's own names
            try:
                name = folder.resolve().relative_to(root.resolve().parent)
                found.append(read_summary(folder).assign(folder=os.fsencode(name).decode(errors="backslashreplace")))
            except (OSError, ValueError) as error:
                left_out(folder / SUMMARY, error)
    return pd.concat(found[1:] or found)[found[0].columns]


def tuner_parts(tuners: pd.DataFrame) -> list[Part]:
    """Heading and table of each tuner's measurements, and how to read them."""
    parts: list[Part] = []
    for (folder, metric), table in tuners.groupby(["folder", "metric"]):
        cells = [["tuning space", *table["tuning_space"]], ["experiments", *map(str, table["experiments"])],
                 [f"tuner's best {metric}{UNITS.get(str(metric), '')}", *map(mean_text, table["best_value"])],
                 ["best experiment", *table["best_experiment"]]]
        parts += [f"## Autotuning: what the tuner measured ({folder})", Table(cells)]
    return [*parts, captions.TUNER] if parts else []

"""Predictions beside measurements, where a calibration for a row lies with the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from comparison.digits import mean_text
from comparison.figures import legend, looks, new_chart
from comparison.progress import tell
from comparison.settings import RATE, shown_names
from comparison.study import LIBRARIES, Study
from comparison.tables import EMPTY, Part, Table
from prediction.calibration import NAME, Calibration, read_calibration
from prediction.predict import Prediction, predict
from prediction.setting import setting_of
from workload.errors import InputError

# What a calibration shares with the rows that it predicts.
SAME = ("hardware", "source_digest", *LIBRARIES, "model_sha256", "data_sha256", "task", "precision", "max_seq_length")
PREDICTED = {RATE: "predicted_" + RATE, "peak_memory_gib": "predicted_peak_memory_gib"}
SHOWN = {RATE: "throughput (samples/s)", "peak_memory_gib": "peak memory (GiB)"}


def find_calibrations(root: Path) -> dict[Path, Calibration]:
    """Every calibration.json in or below `root`, or beside it; a broken one is named and left out."""
    found = {}
    for path in sorted({*root.rglob(NAME), root.absolute().parent / NAME}):
        try:
            found |= {path: read_calibration(path)} if path.is_file() else {}
        except InputError as error:
            tell(f"left out: {error}")
    return found


def add_predictions(rows: pd.DataFrame, calibrations: Mapping[Path, Calibration]) -> None:
    """Give rows the columns of `PREDICTED`; empty where no calibration fits, or nothing predicts the strategy.

    A calibration that fits no row is named, with the first thing that no row shares.
    """
    if not calibrations:
        return
    predictions = [_prediction(row, list(calibrations.values())) for _, row in rows.iterrows()]
    for path, calibration in calibrations.items():
        if not any(_fits(row, calibration) for _, row in rows.iterrows()):
            facts = {name: calibration.facts.get(name) for name in (*SAME, "cpu_threads")}
            other = [f"{name} {value}" for name, value in facts.items() if not (rows[name] == value).any()]
            tell(f"{path} predicts no run here; it was made for {other[0] if other else 'another mixture of settings'}")
    rows[PREDICTED[RATE]] = [found and found.throughput_samples_per_s for found in predictions]
    rows[PREDICTED["peak_memory_gib"]] = [found and found.peak_memory_gib for found in predictions]
    for column in PREDICTED.values():
        rows[column] = rows[column].astype(float)


def _prediction(row: pd.Series, calibrations: Sequence[Calibration]) -> Prediction | None:
    """By the calibration with the number of devices that is nearest to the row's; None if there is none."""
    setting = setting_of({str(name): None if pd.isna(value) else value for name, value in row.items()})
    fitting = [each for each in calibrations if _fits(row, each)]
    for calibration in sorted(fitting, key=lambda each: abs(each.devices - row["devices"])):
        try:
            return predict(calibration, setting) if setting else None
        except KeyError:  # it has no links for groups of this size
            continue
    return None


def predicted_table(group: pd.DataFrame) -> list[Part]:
    """A table of rows with a prediction: predicted, measured, and by how much the prediction is off."""
    if PREDICTED[RATE] not in group or not len(group := group[group[PREDICTED[RATE]].notna()]):
        return []
    columns, metrics = [["setting", *shown_names(group)]], [""]
    for measured, title in SHOWN.items():
        predicted = group[PREDICTED[measured]]
        error = 100 * (predicted / group[measured] - 1)
        columns += [[f"predicted {title}", *(_number(value) for value in predicted)],
                    [f"measured {title}", *(_number(value) for value in group[measured])],
                    ["error %", *(EMPTY if pd.isna(value) else f"{value:+.1f}" for value in error)]]
        metrics += [PREDICTED[measured], measured, ""]
    return ["### Predicted beside measured", Table(columns, tuple(metrics))]


def predicted_chart(rows: pd.DataFrame, heading: str, study: Study) -> Figure | None:
    """Predicted over measured throughput with the diagonal; None without predictions."""
    if PREDICTED[RATE] not in rows or not len(rows := rows[rows[PREDICTED[RATE]].notna()]):
        return None
    figure, axes = new_chart("predicted beside measured", heading, "predicted throughput (samples/s)", 8)
    ends = [0, 1.1 * rows[[RATE, PREDICTED[RATE]]].to_numpy(float).max()]
    drawn = {"as predicted": axes.plot(ends, ends, color="0.35", linewidth=1, zorder=1)[0]}
    for name, (colour, _, marker, _), (_, row) in zip(shown_names(rows), looks(rows, study), rows.iterrows(),
                                                      strict=True):
        drawn[name] = axes.plot(row[RATE], row[PREDICTED[RATE]], marker, color=colour, markersize=7,
                                markerfacecolor="none", linestyle="")[0]
    axes.set(xlim=ends, ylim=ends, xlabel="measured throughput (samples/s)")
    legend(figure, drawn)
    return figure


def _number(value: float) -> str:
    return EMPTY if pd.isna(value) else mean_text(value, float("nan"))


def _fits(row: pd.Series, calibration: Calibration) -> bool:
    """On GPUs rows have no `cpu_threads`, as the host's matter little."""
    names = SAME if pd.isna(row["cpu_threads"]) else (*SAME, "cpu_threads")
    return all(pd.notna(row[name]) and calibration.facts.get(name) == row[name] for name in names)

"""What a comparison comes to, in sentences: what is fastest, how sure that is, how losses differ, what is unknown."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from comparison.digits import mean_text, number
from comparison.figures import Members
from comparison.rows import FLOOR
from comparison.runs import Run
from comparison.settings import RATE
from comparison.statistics import estimate, in_percent, log_ratios
from comparison.study import Study

SAME_PCT = 0.01  # validation losses that are closer round to the same five digits


def verdict(group: pd.DataFrame, members: Members, study: Study) -> list[str]:
    """Sentences about a group of comparable rows."""
    found = []
    measured = group[group[RATE].notna()]
    for devices in sorted(int(count) for count in measured["devices"].unique()):
        rows = measured[measured["devices"] == devices]
        rows = rows.sort_values(RATE, ascending=False)
        first = rows.iloc[0]
        where = f"On {devices} device{'s' * (devices > 1)}"
        rate = f"{mean_text(first[RATE])} samples/s"
        if len(rows) > 1:
            found.append(f"{where}, {first['setting']} is the fastest, with {rate}; "
                         f"{_ahead(first, rows.iloc[1], members)}")
        elif devices > 1:
            found.append(f"{where} only {first['setting']} ran, with {rate}.")
        else:
            found.append(f"{where}: {rate}.")
    return [*found, *_learned(group), *_unknown(group, members, study)]


def _ahead(first: pd.Series, second: pd.Series, members: Members) -> str:
    """By how much the first row is ahead of the second, and how sure that is."""
    other = f"the next, {second['setting']} with {mean_text(second[RATE])}"
    ours, theirs = (_by_seed(members[int(str(row.name))]) for row in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return f"{other}, ran with other seeds."
    change = in_percent(estimate(log_ratios(*(np.array([each[seed] for seed in common]) for each in (ours, theirs)))))
    size = f"{abs(change.mean):.1f} %"
    lead = f"as fast as {other}" if size == "0.0 %" else f"{size} ahead of {other}"
    if change.mean < 0 and size != "0.0 %":  # its mean over all seeds is the larger one
        lead = f"{size} behind {other}, on the seeds that both have"
    moved = [row["setting"] for row in (first, second) if isinstance(row["moved"], str)]
    if len(common) == 1:
        floor = _floor(first, second)
        lead += (" (one seed, and nothing was run twice: how far apart reruns would be is unknown)" if pd.isna(floor)
                 else f" (one seed, of which reruns differ by up to {floor:.1f} %)")
    else:
        low, high = (float(change.mean + side * change.half_width) for side in (-1, 1))
        lead += f" (95 % interval {number(low, 1, '+')} to {number(high, 1, '+')} %, {len(common)} seeds)"
        if low <= 0:
            lead += ", which may be chance"
    return lead + (f"; the machine changed its speed under {' and '.join(moved)}." if moved else ".")


def _floor(first: pd.Series, second: pd.Series) -> float:
    """What reruns differ by, in percent; NaN if nothing was run twice."""
    floors = [row.get(RATE + FLOOR, np.nan) for row in (first, second)]
    return max((floor for floor in floors if pd.notna(floor)), default=np.nan)


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """The mean rate of each seed."""
    rates: dict[int, list[float]] = {}
    for run in runs:
        if pd.notna(rate := run.summary.get(RATE, np.nan)):
            rates.setdefault(run.summary["seed"], []).append(rate)
    return {seed: sum(several) / len(several) for seed, several in rates.items()}


def _learned(group: pd.DataFrame) -> list[str]:
    losses = group.dropna(subset="validation_loss").sort_values("validation_loss")
    if len(losses) < 2:
        return []
    low, high = losses.iloc[0], losses.iloc[-1]
    spread = 100 * (high["validation_loss"] / low["validation_loss"] - 1)
    if spread < SAME_PCT:
        return [f"Every row ends with a validation loss of {low['validation_loss']:.5g}; the largest difference is "
                f"{spread:.1g} %."]
    values = f"{low['validation_loss']:.5g} ({low['setting']}) to {high['validation_loss']:.5g} ({high['setting']})"
    return [f"Validation losses go from {values}, {spread:.2g} % apart."]


def _unknown(group: pd.DataFrame, members: Members, study: Study) -> list[str]:
    """Metrics of the first table that no run measured, by reason."""
    reasons: dict[str, list[str]] = {}
    metrics = next(iter(study.tables.values()))
    for metric in metrics:
        if group[metric.column].notna().any():
            continue
        said = {run.description.get("empty", {}).get(metric.column) for index in group.index for run in members[index]
                if isinstance(run.description.get("empty", {}), dict)}
        reason = " or ".join(sorted(text for text in said if isinstance(text, str))) or "no run says why"
        reasons.setdefault(reason, []).append(metric.label)
    return [f"Not measured: {', '.join(labels)} ({reason})." for reason, labels in reasons.items()]

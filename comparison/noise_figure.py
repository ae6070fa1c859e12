"""The gradient noise scale over training: windows of sampled steps, each with its interval."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from comparison.figures import Members, joined, legend, looks, new_chart
from comparison.runs import NOISE, NORMS, Run
from comparison.settings import shown_names
from comparison.study import Study
from measurement.metrics import FEWEST_STEPS, noise_scale

MOST_WINDOWS = 8
FEWEST_WINDOWS = 2


def windows(run: Run) -> pd.DataFrame:
    """The noise scale in consecutive windows of sampled steps of (nearly) equal number, 20 or more each.

    Returns:
        A row per window with a value: `samples` (mean of the steps'), `value`, `low` and `high` in samples; `high` is
        infinite where the window does not bound it. No row for fewer than two windows.
    """
    rows, batch, micro_batch = [], run.summary["global_batch_size"], run.summary.get("gradient_samples")
    steps = run.curves.get(NOISE, pd.DataFrame(columns=["samples", *NORMS]))
    steps = steps.dropna()
    count = min(len(steps) // FEWEST_STEPS, MOST_WINDOWS)
    if pd.notna(micro_batch) and count >= FEWEST_WINDOWS:
        for place in np.array_split(np.arange(len(steps)), count):
            window = steps.iloc[place]
            found = noise_scale(window[NORMS].itertuples(index=False), micro_batch, batch)
            if found.low is not None:
                rows.append([window["samples"].mean(), found.samples, found.low, found.high])
    return pd.DataFrame(rows, columns=["samples", "value", "low", "high"], dtype=float)


def noise_chart(rows: pd.DataFrame, members: Members, heading: str, study: Study) -> Figure | None:
    """A line per run over its windows, with their intervals; None if no run has two windows."""
    found = {index: [table for table in map(windows, members[index]) if len(table)] for index in rows.index}
    if not any(found.values()):
        return None
    heading += "\nwindows of 20 or more sampled steps, 95 % intervals; arrow: no upper end"
    figure, axes = new_chart("noise scale over training", heading, "noise scale (samples)", 9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    # At equal batch and micro-batch all rows have the same noise scale: side by side they can all be seen.
    gap = max(table["samples"].max() for tables in found.values() for table in tables) / 100
    drawn, names, endless = {}, shown_names(rows), []
    for place, (index, (colour, line, marker, _)) in enumerate(zip(rows.index, looks(rows, study), strict=True)):
        look = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": "none", "linewidth": 1.2}
        if not found[index]:
            continue
        x, value, low, high = joined([table.to_numpy() for table in found[index]])
        x = x + gap * (place - (len(rows) - 1) / 2)
        above = np.where(np.isfinite(high), high - value, 0.0)
        axes.errorbar(x, value, [value - low, above], fmt="none", ecolor=colour, elinewidth=0.9, capsize=3)
        drawn[names[index]] = axes.plot(x, value, **look)[0]
        endless += [(*point, colour) for point in zip(x[np.isinf(high)], value[np.isinf(high)], strict=True)]
    top = axes.get_ylim()[1] * (3 if endless else 1)
    for at, value, colour in endless:
        axes.annotate("", (at, top), (at, value), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.9})
    axes.set_ylim(top=top)
    axes.set_xlabel(study.axes["samples"])
    legend(figure, drawn)
    return figure

"""plots.py over many runs: an artist a setting rather than a run, and figures drawn in several processes."""

from functools import partial

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import plots
from comparison.figures import line_chart, quality_chart
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.saving import save_figures
from comparison.targets import Aim
from tests.shared.made_up_runs import write_seeds


def figure_of(name: str) -> Figure | None:
    if name == "nothing":
        return None
    if name == "broken":
        raise OSError("no space left")
    figure = Figure(figsize=(2, 2), layout="constrained")
    figure.add_subplot().plot([1, 2])
    return figure


def axes_of(figure: Figure | None) -> Axes:
    assert figure is not None
    return figure.axes[0]


@pytest.fixture
def compared(tmp_path):
    write_seeds(tmp_path, "one", [50] * 12, curves=True, target_loss=3.0, time_to_target_s=12.8)
    write_seeds(tmp_path, "two", [90] * 12, devices=2, curves=True, target_loss=3.0, time_to_target_s=12.8)
    return compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)


def test_all_runs_of_a_setting_are_one_line_with_gaps_between_them(compared):
    rows, members = compared
    for curve, points in (("train_loss", 30), ("validation_loss", 3)):
        curve = next(each for each in plots.STUDY.curves if each.column == curve)
        axes = axes_of(line_chart(rows, members, curve, "samples", "made up", plots.STUDY))
        assert len(axes.lines) == len(rows) == 2
        for line in axes.lines:
            x, y = np.asarray(line.get_xydata()).T
            assert np.isnan(x).sum() == np.isnan(y).sum() == 11 and len(x) == 12 * points + 11
            assert np.array_equal(x[:points], x[-points:]) and not np.isnan(x[line.get_markevery()]).any()
    axes = axes_of(line_chart(rows, members, plots.STUDY.curves[0], "samples", "made up", plots.STUDY))
    faint = [lines.get_segments() for lines in axes.collections if isinstance(lines, LineCollection)]
    assert [len(segments) for segments in faint] == [12, 12]
    assert faint[0][0][:, 1].tolist() == members[0][0].curves["train_loss"]["train_loss"].tolist()


def test_so_are_their_ways_to_a_target(compared):
    rows, members = compared
    aim = Aim("validation_loss", 3.0, "validation loss ≤ 3")
    _, *lines = axes_of(quality_chart(rows, members, aim, "made up", plots.STUDY)).lines
    assert [len(np.asarray(line.get_xydata())) for line in lines] == [12 * 3 + 11, 12] * 2


def test_figures_are_drawn_by_several_processes(tmp_path):
    names = [*map(str, range(30)), "nothing"]
    assert save_figures({tmp_path / f"{name}.png": partial(figure_of, name) for name in names}) == 30
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names[:-1])


@pytest.mark.parametrize("number", [1, 30])
def test_what_goes_wrong_in_one_of_them_is_raised(tmp_path, number):
    names = [*map(str, range(number)), "broken"]
    with pytest.raises(OSError, match="no space left"):
        save_figures({tmp_path / f"{name}.png": partial(figure_of, name) for name in names})

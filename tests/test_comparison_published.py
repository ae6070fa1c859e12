"""Published figures: shown as they were published beside our rows, and nowhere else."""

import sys

import pandas as pd
import pytest

import plots
from comparison.published import COLUMNS
from tests.shared.made_up_runs import table_below, write_run, write_seeds


@pytest.fixture
def folder(tmp_path):
    """Made-up published figures of one study that has runs here and of one that has none."""
    path = tmp_path / "figures_of_others"
    path.mkdir()
    bert = [
        ("DDP", 4, "throughput_samples_per_s", "37.980", "samples/s"),
        ("DDP", 4, "runtime_s", "61.5", "min"),
        ("DDP", 4, "published_goodput", "0.0049", "loss/s"),
        ("DDP", 4, "experiments", "35", "runs"),
        ("alone", 1, "throughput_samples_per_s", "10", "samples/s"),
        ("no devices", "", "f1", "1e1", "%"),
    ]
    autotuning = [("tuned", 16, "throughput_samples_per_s", "2682.849", "samples/s")]
    for name, figures in {"bert_squad": bert, "autotuning": autotuning, "imdb_scaling": []}.items():
        lines = [(name, *figure, "a document", "what it measures") for figure in figures]
        pd.DataFrame(lines, columns=COLUMNS).to_csv(path / f"{name}.csv", index=False)
    return path


def run_plots(monkeypatch, capsys, folder, *arguments):
    monkeypatch.setattr(plots, "PUBLISHED", folder)
    monkeypatch.setattr(sys, "argv", ["plots.py", *map(str, arguments)])
    plots.main()
    return capsys.readouterr()


def test_published_rows_stand_below_ours_as_published(tmp_path, monkeypatch, capsys, folder):
    root = tmp_path / "runs"
    write_seeds(root, "one", [48, 52], published_goodput=0.0125)
    write_run(root / "imdb", task="imdb", devices=2)
    text = run_plots(monkeypatch, capsys, folder, root, "--published").out
    assert table_below(text, "Published: bert_squad") == [
        ["setting", "runtime s", "throughput samples/s", "F1 %", "published goodput loss/s"],
        ["1 device", "190 ± 100", "50 ± 30", "—", "0.01250 ± 0"],
        ["published: DDP, 4 GPUs", "61.5 min", "37.980", "—", "0.0049"],
        ["published: alone, 1 GPU", "—", "10", "—", "—"],
        ["published: no devices", "—", "—", "1e1", "—"],
    ]
    assert table_below(text, "Published: autotuning")[1:] == [["published: tuned, 16 GPUs", "2682.849"]]
    assert "## Published: imdb_scaling\n\nIts authors published no figures." in text
    assert "measure something else" in text
    assert "docs/notes/published_results.md" in text
    assert (root / "comparison.md").read_text(encoding="utf-8") in text


def test_published_figures_enter_nothing_else(tmp_path, monkeypatch, capsys, folder):
    root = tmp_path / "runs"
    write_run(root / "pipe", "pipeline", 4)
    without = run_plots(monkeypatch, capsys, folder, root, "--output_dir", tmp_path / "a").out
    run_plots(monkeypatch, capsys, folder, root, "--output_dir", tmp_path / "b", "--published")
    assert "Published" not in without
    plain, beside = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()} for name in "ab"
    )
    assert beside.pop("comparison.md").startswith(plain.pop("comparison.md").rstrip())
    both = [pages.pop("report.html").split(b"<script>")[1] for pages in (plain, beside)]  # the page has them, too
    assert both[0] == both[1]
    assert beside == plain  # comparison.csv and every figure


def test_rows_of_several_groups_say_of_which(tmp_path, monkeypatch, capsys, folder):
    root = tmp_path / "runs"
    write_run(root / "a")
    write_run(root / "b", global_batch_size=64)
    table = table_below(run_plots(monkeypatch, capsys, folder, root, "--published").out, "Published: bert_squad")
    assert [line[0] for line in table[1:3]] == ["1 device, global batch 32", "1 device, global batch 64"]


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "broken.csv cannot be read"),
        ("study,setting\n", "broken.csv has the columns study, setting; needed are study, setting, devices"),
        (f"{HEADER}\nx,y,2,f1,high,%,z,w\n", "broken.csv: value is 'high', not a usable number"),
        (f"{HEADER}\nx,y,two,f1,1,%,z,w\n", "broken.csv: devices is 'two', not a usable number"),
        (f"{HEADER}\nx,y,2,f1,1,%,z,w\nx,y,2,f1,,%,z,w\n", "broken.csv has no value in line 3"),
        (f"{HEADER}\nx,y,2,f1,1,%,z,w,v\n", "line 2 has 9 cells, the first has 8"),
    ],
)
def test_a_broken_file_is_named_and_skipped(tmp_path, monkeypatch, capsys, folder, content, reason):
    (folder / "broken.csv").write_text(content, encoding="utf-8")
    write_run(tmp_path / "runs" / "a")
    done = run_plots(monkeypatch, capsys, folder, tmp_path / "runs", "--published")
    (line,) = done.err.splitlines()
    assert line.startswith("left out ")
    assert reason in line
    assert "Published: bert_squad" in done.out
    assert "Published: broken" not in done.out


def test_no_published_figures_at_all(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs" / "a")
    done = run_plots(monkeypatch, capsys, tmp_path / "nowhere", tmp_path / "runs", "--published")
    assert len(done.err.splitlines()) == 1
    assert "docs/notes/published_results.md" not in done.out


def test_the_folder_is_that_of_the_project():
    assert plots.PUBLISHED.parts[-2:] == ("results", "published")
    assert plots.PUBLISHED.parents[1] == plots.Path(plots.__file__).resolve().parent

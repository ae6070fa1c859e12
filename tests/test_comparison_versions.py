"""Rows of different code or library versions share no table unless asked for, and uncommitted changes show."""

import json
import sys

import pandas as pd
import pytest

import plots
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.scaling import pivot, weak_groups
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

OLD, NEW = "0a" * 6, "1b" * 6  # digests
VERSIONS = {"torch": "2.11.0", "transformers": "5.17.0", "deepspeed": "0.19.8"}
RECORDED = {"source_digest": OLD, "script_digest": "5c" * 6, "commit": "c0" * 20, "dirty": "no", **VERSIONS}
MIXED = plots.STUDY.mixing_versions()


@pytest.fixture
def printed(tmp_path, capsys, monkeypatch):
    """Runs plots.py without drawing; returns the printed text below each heading."""
    def run(*flags):
        monkeypatch.setattr("comparison.report.charts", lambda *_: {})
        monkeypatch.setattr("comparison.report.weak_charts", lambda *_: {})
        monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path), *flags])
        plots.main()
        output = capsys.readouterr()
        assert not output.err
        return dict(part.split("\n\n", 1) for part in output.out.split("\n## ")[1:])
    return run


def names_in(part):
    """Names of the rows of the first table."""
    return [line.split("|")[1].strip() for line in part.split("\n\n")[1].splitlines()[2:]]


def write_old_run(folder, commit, dirty=False, **values):
    """A run from before digests and versions stood in summary.csv: only its run.json has its commit and versions."""
    write_run(folder, **values)
    record = {"status": "finished", "git": commit and {"commit": commit, "dirty": dirty}, "versions": VERSIONS}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(("column", "other", "said"), [
    ("source_digest", NEW, ["code 0a0a0a0a0a0a", "code 1b1b1b1b1b1b"]),
    ("torch", "2.13.0", ["torch 2.11.0", "torch 2.13.0"]),
    ("transformers", "5.23.0", ["transformers 5.17.0", "transformers 5.23.0"]),
    ("deepspeed", "0.20.0", ["deepspeed 0.19.8", "deepspeed 0.20.0"]),
])
def test_runs_of_different_code_or_versions_get_a_table_each(tmp_path, printed, column, other, said):
    write_run(tmp_path / "a", devices=2, **RECORDED)
    write_run(tmp_path / "b", "pipeline", 2, **RECORDED | {column: other})
    first, second, _ = headings = list(printed())
    assert [heading.rpartition(", ")[2] for heading in (first, second)] == said
    assert len(headings) == 3  # and how to read them
    assert rows_of(tmp_path)["baseline"].isna().all()


def test_runs_of_the_same_code_share_a_table_whatever_their_commit(tmp_path, printed):
    write_run(tmp_path / "a", devices=2, **RECORDED)
    write_run(tmp_path / "b", "pipeline", 2, **RECORDED | {"commit": "d0" * 20, "script_digest": NEW})
    heading, _ = text = printed()
    assert "code" not in heading and "torch" not in heading  # said only where tables differ in it
    assert names_in(text[heading]) == ["DDP x 2 (baseline)", "pipeline 2 stages"]
    assert "Code of a commit" not in text["How to read the tables"]
    assert "†" not in text["How to read the tables"]


def test_mix_versions_puts_them_in_one_table_which_says_so(tmp_path, printed):
    write_run(tmp_path / "a", devices=2, throughput=100, **RECORDED)
    write_run(tmp_path / "b", "pipeline", 2, throughput=80, **RECORDED | {"source_digest": NEW, "torch": "2.13.0"})
    heading, _ = text = printed("--mix_versions")
    assert heading.endswith(", mixed: code 0a0a0a0a0a0a and 1b1b1b1b1b1b, torch 2.11.0 and 2.13.0")
    assert names_in(text[heading]) == ["DDP x 2, code 0a0a0a0a0a0a, torch 2.11.0 (baseline)",
                                       "pipeline 2 stages, code 1b1b1b1b1b1b, torch 2.13.0"]
    assert "80.0 (-20.0%)" in text[heading]


def test_mixing_averages_no_runs_of_different_code_and_prefers_a_baseline_of_the_same(tmp_path):
    for digest, ddp, pipe in ((OLD, 100, 80), (NEW, 200, 180)):
        stamp = RECORDED | {"source_digest": digest}
        write_run(tmp_path / f"one{ddp}", throughput=ddp / 2, **stamp)
        write_seeds(tmp_path, f"ddp{ddp}", [ddp, ddp], devices=2, **stamp)
        write_seeds(tmp_path, f"pipe{ddp}", [pipe, pipe], "pipeline", 2, **stamp)
    rows, _ = compare(find_runs(tmp_path, MIXED), MIXED)
    rows = rows.set_index("setting")
    assert rows["runs"].sum() == 10 and set(rows["runs"]) == {1, 2}
    assert rows.loc["pipeline 2 stages, code 0a0a0a0a0a0a", "baseline"] == "DDP x 2, code 0a0a0a0a0a0a"
    assert rows.loc["pipeline 2 stages, code 1b1b1b1b1b1b", "throughput_samples_per_s_change_pct"] == pytest.approx(-10)
    assert list(rows.loc[["DDP x 2, code 0a0a0a0a0a0a", "DDP x 2, code 1b1b1b1b1b1b"], "speedup"]) == [2, 2]
    titles = str(pivot(rows.reset_index(), "own_speedup", MIXED)).splitlines()[0]
    assert [title.strip() for title in titles.split("|")[2:-1]] == ["DDP, code 0a0a0a0a0a0a", "DDP, code 1b1b1b1b1b1b"]


@pytest.mark.parametrize(("study", "count"), [(plots.STUDY, 2), (MIXED, 1)])
def test_weak_scaling_holds_code_and_versions_equal_too(tmp_path, study, count):
    for digest in (OLD, NEW):
        for devices in (1, 2):
            values = RECORDED | {"source_digest": digest, "epoch_workload": "e1", "epoch_s": 10}
            write_run(tmp_path / f"{digest[:2]}{devices}", devices=devices, global_batch_size=32 * devices,
                      micro_batch_size=32, workload=devices, **values)
    rows, _ = compare(find_runs(tmp_path, study), study)
    headings = [heading for heading, _, _ in weak_groups(rows, study)]
    assert len(headings) == count
    assert all("code 0a0a0a0a0a0a" in heading or "code 1b1b1b1b1b1b" in heading for heading in headings)


def test_runs_of_two_scripts_are_two_rows(tmp_path):
    for name, digest in (("a", OLD), ("b", NEW)):
        write_seeds(tmp_path, name, [100, 102], devices=2, **RECORDED | {"script_digest": digest})
    write_run(tmp_path / "pipe", "pipeline", 2, **RECORDED)
    rows = rows_of(tmp_path)
    assert list(rows.index) == ["DDP x 2, script 0a0a0a0a0a0a", "DDP x 2, script 1b1b1b1b1b1b", "pipeline 2 stages"]
    assert list(rows["runs"]) == [2, 2, 1]
    assert rows["group"].nunique() == 1


def test_a_dirty_run_is_marked_and_a_note_says_what_that_means(tmp_path, printed):
    write_run(tmp_path / "clean", devices=2, **RECORDED)
    write_run(tmp_path / "dirty", devices=2, seed=1, **RECORDED | {"dirty": "yes"})
    write_run(tmp_path / "pipe", "pipeline", 2, **RECORDED)
    heading, _ = text = printed()
    assert names_in(text[heading]) == ["DDP x 2 † (baseline)", "pipeline 2 stages"]  # one of two seeds is enough
    assert "† : " in text["How to read the tables"]
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("setting")
    assert table["dirty"].to_dict() == {"DDP x 2": "yes", "pipeline 2 stages": "no"}
    assert set(table["source_digest"]) == {OLD} and set(table["commit"]) == {"c0" * 20}


def test_a_run_without_a_digest_is_grouped_by_its_commit(tmp_path, printed):
    write_run(tmp_path / "new", devices=2, **RECORDED)
    for name, commit, dirty in (("a", "a1", False), ("b", "a1", True), ("c", "b2", False), ("d", "", False)):
        write_old_run(tmp_path / name, commit * 20, dirty, strategy="pipeline", devices=2)
    text = printed()
    *headings, reading = text
    assert {heading.rpartition("process, ")[2] for heading in headings} == {
        "code 0a0a0a0a0a0a", "code of commit a1a1a1a1", "code of commit a1a1a1a1 with uncommitted changes",
        "code of commit b2b2b2b2", "unrecorded code"}
    assert "- Code of a commit, or unrecorded: " in text[reading]
    assert [heading for heading in headings if "†" in text[heading]] == [
        heading for heading in headings if "uncommitted" in heading]


def test_versions_come_from_run_json_where_the_summary_has_none(tmp_path):
    for name, commit in (("a", "a1" * 20), ("b", "a1" * 20)):
        write_old_run(tmp_path / name, commit, seed=int(name == "b"), devices=2)
    (row,) = rows_of(tmp_path).to_dict("records")
    assert {column: row[column] for column in VERSIONS} == VERSIONS
    assert row["runs"] == 2


def test_a_run_that_was_resumed_with_other_code_shares_no_table_with_either(tmp_path):
    """Such a row lists all its values, run.json has those of the last attempt."""
    write_run(tmp_path / "old", devices=2, **RECORDED)
    write_run(tmp_path / "new", devices=2, **RECORDED | {"source_digest": NEW})
    both = RECORDED | {"source_digest": f"{OLD} + {NEW}", "script_digest": f"{OLD} + {NEW}"}
    folder = write_run(tmp_path / "resumed", devices=2, **both)
    record = {"status": "finished", "source_digest": NEW, "script_digest": NEW}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    rows, _ = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    assert sorted(rows["code"]) == [OLD, f"{OLD} + {NEW}", NEW]
    assert rows["group"].nunique() == 3


def test_a_run_json_with_nonsense_about_its_code_counts_as_unrecorded(tmp_path):
    folder = write_run(tmp_path / "run")
    record = {"status": "finished", "git": {"commit": 7, "dirty": ["yes"]}, "versions": [1], "source_digest": {}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (row,) = rows_of(tmp_path).to_dict("records")
    assert all(pd.isna(row[column]) for column in ("code", "torch", "dirty")) and not row["is_dirty"]


def test_a_version_that_a_spreadsheet_changed_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", **RECORDED | {"transformers": "2000-02-05"})
    (folder / "run.json").write_text(json.dumps({"status": "finished", "versions": VERSIONS}), encoding="utf-8")
    assert not find_runs(tmp_path, plots.STUDY)
    reason = "summary.csv: transformers is '2000-02-05', but run.json says '5.17.0'"
    assert capsys.readouterr().err == f"left out {folder}: {reason}\n"

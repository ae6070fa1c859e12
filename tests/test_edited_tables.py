"""Tables that were cut off, or saved again by a spreadsheet or an editor: read rightly, or refused in a line."""

import csv
import os
import re

import pandas as pd
import pytest

import plots
from comparison.autotuning import find_tuners
from comparison.csv_files import read_columns
from comparison.runs import find_runs, read_summary
from measurement.columns import COMPLETE, STEP_COLUMNS, SUMMARY_COLUMNS, YES
from measurement.table import Table
from tests.shared.made_up_runs import SUMMARY, rows_of, write_run, write_seeds, write_tuner
from tests.shared.runs import ROOT

RECORDED = ROOT / "results" / "reference" / "gpt2_frameworks_cpu_2_cores" / "pipeline-2dev-2stages-8micro-batch16"


@pytest.fixture
def row():
    """Of a recorded pipeline, as a run writes it today."""
    with open(RECORDED / "summary.csv", newline="", encoding="utf-8") as file:
        [recorded] = csv.DictReader(file)
    return {name: recorded.get(name, "") for name in SUMMARY_COLUMNS} | {COMPLETE: YES}


@pytest.fixture
def summary(tmp_path, row):
    """The path of a summary.csv of that row."""
    table = Table(tmp_path / "summary.csv", SUMMARY_COLUMNS)
    table.add(**row)
    table.close()
    return tmp_path / "summary.csv"


def read(path):
    """The values of a summary.csv that runs are compared by; those that are empty left out."""
    return {name: value for name, value in read_summary(path.parent, {}, plots.STUDY).items() if pd.notna(value)}


# ---------------------------------------------------------------------- cut off

def cut_positions(path):
    """Leave ever fewer bytes of a file; yields how many."""
    content = path.read_bytes()
    for length in range(len(content) - 1, -1, -1):
        path.write_bytes(content[:length])
        yield length


def test_a_summary_that_is_cut_anywhere_is_refused_or_whole(summary):
    whole, refused = read(summary), 0
    assert whole["perplexity"] > 40
    length = summary.stat().st_size
    for _ in cut_positions(summary):
        try:
            assert read(summary) == whole
        except ValueError as error:
            assert str(error).startswith("summary.csv ")
            refused += 1
    assert refused == length - 1, "all but the one without its last line break"


def test_so_is_one_of_an_earlier_commit_without_that_column(tmp_path):
    path = tmp_path / "summary.csv"
    rows = (RECORDED / "summary.csv").read_text().splitlines()
    path.write_text("".join(row.rpartition(",")[0] + "\n" for row in rows))
    assert COMPLETE not in path.read_text() and read(path)["perplexity"] > 40
    for _ in cut_positions(path):
        with pytest.raises(ValueError, match="^summary.csv "):
            read(path)


def test_a_cut_curve_keeps_its_whole_rows_only(tmp_path, capsys):
    path = tmp_path / "steps.csv"
    table = Table(path, STEP_COLUMNS)
    for step in range(1, 5):
        table.add(step=step, elapsed_s=1.5 * step, train_loss=4.125 - step, samples=32 * step)
    table.close()
    whole = pd.DataFrame(read_columns(path))
    ends = [place + 1 for place, byte in enumerate(path.read_bytes()) if byte == ord("\n")]
    for length in cut_positions(path):
        found = pd.DataFrame(read_columns(path, drop_torn=True))
        rows = sum(end <= length for end in ends) - 1
        assert found.equals(whole.iloc[:rows]) if rows > 0 else found.empty
        assert capsys.readouterr().err.count("\n") == (length not in ends)


def test_a_run_with_a_cut_curve_keeps_its_row(tmp_path, capsys):
    folder = write_run(tmp_path / "run", curves=True)
    steps = folder / "steps.csv"
    steps.write_bytes(steps.read_bytes()[:-2])
    [run] = find_runs(tmp_path, plots.STUDY)
    assert len(run.curves["train_loss"]) == 29 and len(run.curves["validation_loss"]) == 3
    assert capsys.readouterr().err == f"{steps}: its last row is cut off and is left out\n"


def test_a_cut_table_of_the_autotuner_shows_no_other_numbers(tmp_path, capsys):
    write_tuner(tmp_path)
    whole = find_tuners(tmp_path)
    lines = SUMMARY.encode().splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in (3, 4, 5)]  # of the lines with a tuning space
    for length in cut_positions(tmp_path / "summary.txt"):
        found = find_tuners(tmp_path)
        rows = sum(end - 1 <= length for end in ends)
        assert found.equals(whole.iloc[:rows]) or found.empty and capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------- saved again

def saved_as(separator, decimal="."):
    def save(text):
        head, cells = csv.reader(text.splitlines())
        cells = [cell.replace(".", decimal) if re.fullmatch(r"-?\d+\.\d+(e[-+]\d+)?", cell) else cell for cell in cells]
        return "".join(separator.join(f'"{cell}"' if separator in cell else cell for cell in line) + "\r\n"
                       for line in (head, cells))
    return save


SAVED = {
    "no line break at the end": lambda text: text.rstrip("\n"),
    "Windows line breaks": lambda text: text.replace("\n", "\r\n"),
    "old Macintosh line breaks": lambda text: text.replace("\n", "\r"),
    "byte order mark": lambda text: "\ufeff" + text,
    "every cell quoted": lambda text: re.sub(r"[^,\n]+|(?<=,)(?=[,\n])", lambda cell: f'"{cell[0]}"',
                                             text.replace(", ", " ")),
    "spaces around cells": lambda text: text.replace(",", " , "),
    "empty rows": lambda text: "\n" + text + "," * (len(SUMMARY_COLUMNS) - 1) + "\n\n",
    "empty columns": lambda text: text.replace("\n", ",,\n"),
    "nan for what is empty": lambda text: re.sub(r"(?<=,)(?=,)", "nan", text),
    "#N/A for what is empty": lambda text: re.sub(r"(?<=,)(?=,)", "#N/A", text),
    "semicolons": saved_as(";"),
    "semicolons and decimal commas": saved_as(";", ","),
    "tabs": saved_as("\t"),
    "columns in another order": lambda text: "".join(f"{line.partition(',')[2]},{line.partition(',')[0]}\n"
                                                     for line in text.splitlines()),
    "a column of remarks": lambda text: text.replace("\n", ",remark\n", 1).rstrip("\n") + ",fine\n",
}


@pytest.mark.parametrize("way", SAVED)
def test_a_table_that_was_saved_again_says_the_same(summary, way):
    whole = read(summary)
    summary.write_bytes(SAVED[way](summary.read_text(encoding="utf-8")).encode())
    found = read(summary)
    assert {name: found[name] for name in whole} == whole


EDITED = [
    ("seed", "0.0", 0), ("seed", "0.00E+00", 0), ("seed", "007", 7), ("seed", "1e1", 10), ("seed", "4294967296", 2**32),
    ("devices", "4.0", 4), ("devices", "4.", 4), ("global_batch_size", "1E+02", 100), ("devices", " 4 ", 4),
    ("strategy", "DDP", "ddp"), ("strategy", "Pipeline ", "pipeline"), ("strategy", "ZeRO-2", "zero2"),
    ("strategy", "ZERO2_OFFLOAD", "zero2_offload"), ("strategy", "HF Trainer ZeRO-1", "hf_trainer_zero1"),
    ("strategy", "FSDP no reshard, bf16 gather", "fsdp_no_reshard_bf16_gather"), ("strategy", "own", "own"),
    ("task", "OSCAR", "oscar"), ("precision", "FP32", "fp32"), ("schedule", "1F1B", "1f1b"),
    ("tuned_by", "Hand", "hand"), ("perplexity", "+4.87E+01", 48.7), ("perplexity", "48", 48), ("f1", ".5", 0.5),
]
UNUSABLE = [
    ("seed", "1,000"), ("seed", "-1"), ("seed", "0.5"), ("seed", "first"), ("seed", "1.23457E+17"), ("seed", "TRUE"),
    ("devices", "0"), ("devices", "1.5"), ("devices", "4 GPUs"), ("global_batch_size", "1,000"), ("devices", "FALSE"),
    ("global_batch_size", "01. Mai"), ("perplexity", "48,7"), ("perplexity", "1,048.7"), ("perplexity", "48.7 %"),
    ("perplexity", "2024-05-01"), ("perplexity", "#DIV/0!"), ("perplexity", "\u2212 48"), ("perplexity", "1_0"),
    ("perplexity", "0x10"), ("perplexity", "inf"), ("perplexity", "\u0664\u0668"), ("perplexity", "####"),
]


def edit(path, column, value):
    with open(path, newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row | {column: value})


@pytest.mark.parametrize("column, written, meant", EDITED)
def test_a_value_in_another_spelling_is_the_same_value(summary, column, written, meant):
    edit(summary, column, written)
    assert read(summary)[column] == meant and type(read(summary)[column]) in (type(meant), float)


@pytest.mark.parametrize("column, written", UNUSABLE)
def test_a_value_that_may_mean_anything_is_refused(summary, column, written):
    edit(summary, column, written)
    with pytest.raises(ValueError, match=f"^summary.csv: {column} is ") as raised:
        read(summary)
    assert written in str(raised.value)


@pytest.mark.parametrize("decimal, odd", [(".", "1,048"), (",", "1.048")])
def test_separated_thousands_are_not_taken_for_decimals(summary, row, decimal, odd):
    """Where some numbers have points a comma separates thousands, and the other way round."""
    text = saved_as(";", decimal)(summary.read_text(encoding="utf-8"))
    summary.write_text(text.replace(row["perplexity"].replace(".", decimal), odd), encoding="utf-8")
    with pytest.raises(ValueError, match="not a usable number"):
        read(summary)


def test_seeds_are_paired_however_they_are_written(tmp_path):
    write_seeds(tmp_path, "ddp", [100, 102], devices=2)
    write_seeds(tmp_path, "pipe", [80, 83], "pipeline", 2)
    for run, seed in (("ddp0", "0.0"), ("pipe1", " 1"), ("pipe0", "0.00E+00")):
        edit(tmp_path / run / "summary.csv", "seed", seed)
    edit(tmp_path / "ddp1" / "summary.csv", "strategy", "DDP")
    rows = rows_of(tmp_path)
    assert list(rows["runs"]) == [2, 2]
    assert rows.loc["pipeline 2 stages", "throughput_samples_per_s_change_n"] == 2


def test_a_hash_that_became_a_number_is_refused(tmp_path, capsys):
    write_run(tmp_path / "good", workload="1e10")
    folder = write_run(tmp_path / "edited", "pipeline", 2, workload="1e10")
    (folder / "run.json").write_text('{"status": "finished", "workload": "1e10"}', encoding="utf-8")
    assert len(find_runs(tmp_path, plots.STUDY)) == 2
    edit(folder / "summary.csv", "workload", "1E+10")
    assert len(find_runs(tmp_path, plots.STUDY)) == 1
    reason = "summary.csv: workload is '1E+10', but run.json says '1e10'"
    assert capsys.readouterr().err == f"left out {folder}: {reason}\n"


def test_an_unknown_strategy_is_named_once(tmp_path, capsys):
    write_seeds(tmp_path, "run", [100, 102], "dpp", 2)
    assert list(rows_of(tmp_path).index) == ["dpp x 2"]
    assert capsys.readouterr().err == (
        f"{tmp_path / 'run0'}: strategy 'dpp' is unknown and gets rows of its own; did you mean ddp?\n")


# ---------------------------------------------------------------------- which folders are read

@pytest.mark.parametrize("place", ["reference", "reference/x", "figures", "figures/x", "published", "x/figures",
                                   "x/reference/y", "run", "results", "x y", "\u00e9", "os.fsdecode"])
@pytest.mark.parametrize("root", ["results", "elsewhere"])
def test_a_run_is_found_whatever_its_folder_is_called(tmp_path, capsys, root, place):
    place = place if place != "os.fsdecode" else os.fsdecode(b"\xff")
    write_run(tmp_path / root / place)
    (tmp_path / root / "exp.json").write_text("{}")  # not the autotuner's: its lies beside a ds_config.json
    assert len(find_runs(tmp_path / root, plots.STUDY, plots.REFERENCE)) == 1 and not capsys.readouterr().err


def test_the_projects_own_reference_runs_are_left_out_and_a_line_says_so(tmp_path, capsys):
    results = tmp_path / "results"
    run = write_run(results / "reference" / "study" / "run")
    write_run(results / "mine")
    reference = results.resolve() / "reference"
    for root in (results, tmp_path):
        assert len(find_runs(root, plots.STUDY, reference)) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line == (f"left out {results / 'reference'}: the project's own reference runs; to see them: "
                        f"python plots.py {results / 'reference'}")
    for root in (results / "reference", run.parent, run):
        assert len(find_runs(root, plots.STUDY, reference)) == 1 and not capsys.readouterr().err
    assert plots.REFERENCE.is_dir()


def test_links_to_runs_count_once(tmp_path, capsys):
    write_run(tmp_path / "disk" / "run")
    results = tmp_path / "results"
    results.mkdir()
    for name in ("latest", "run"):
        (results / name).symlink_to(tmp_path / "disk" / "run")
    (results / "circle").symlink_to(results)
    (results / "gone").symlink_to(tmp_path / "nowhere")
    assert len(find_runs(results, plots.STUDY)) == 1 and not capsys.readouterr().err


def test_folders_that_are_not_read_are_named(tmp_path, capsys):
    write_run(tmp_path / "run")
    write_run(tmp_path / ".run")
    (tmp_path / ".cache").mkdir()
    assert len(find_runs(tmp_path, plots.STUDY)) == 1
    assert capsys.readouterr().err == f"left out {tmp_path / '.run'}: its name begins with a dot\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path, capsys):
    write_run(tmp_path / "run")
    (tmp_path / "closed").mkdir(mode=0)
    assert len(find_runs(tmp_path, plots.STUDY)) == 1
    assert capsys.readouterr().err == f"left out {tmp_path / 'closed'}: Permission denied\n"

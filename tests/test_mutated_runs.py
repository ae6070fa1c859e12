"""Runs whose files are mutated at random: plots.py names and skips them, or shows what stands in them."""

import contextlib
import csv
import io
import json

import pytest

import plots
from comparison.autotuning import find_tuners, tuner_parts
from comparison.report import write_comparison
from comparison.rows import compare
from comparison.runs import NEEDED, find_runs, plain
from tests.shared.made_up_runs import write_run, write_tuner
from tests.shared.mutations import count_outcomes, mutate_bytes, mutate_json, mutate_table, mutate_text

NUMBERS = [b"0", b"-1", b"1e308", b"-1e308", b"1e-320", b"inf", b"nan", b"1e400", b"9" * 40, b"9" * 5000, b"0x10",
           b"1_0", b"18446744073709551615", b"True", b"", b"2", b"0.5"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three runs that share a table, one of them to be mutated."""
    root = tmp_path_factory.mktemp("mutated") / "results"
    write_run(root / "one", throughput=50, validation_loss=2.0, epoch_s=4, epoch_workload="e1")
    write_run(root / "two", devices=2, throughput=98, validation_loss=1.9, epoch_s=2, epoch_workload="e1")
    write_run(root / "other", "pipeline", 2, throughput=75, validation_loss=2.2, epoch_s=3, epoch_workload="e1",
              target_f1=80, time_to_target_s=7, curves=True)
    return root


def quietly(action, *arguments):
    """What an action gives, and the lines that it prints on standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        return action(*arguments), stream.getvalue().splitlines()


def without_notes(lines):
    """The lines about a run but those that it is shown with: of a strategy that nobody knows, of a cut curve."""
    return [line for line in lines if "is unknown and gets rows of its own" not in line
            and not line.endswith(".csv: its last row is cut off and is left out")]


def mutate_cell(chance, content):
    """Put a number of an odd size or form, or a text with odd characters, into a cell of the last row."""
    *above, row = content.rstrip(b"\n").split(b"\n")
    cells = row.split(b",")
    place = chance.randrange(len(cells))
    text = mutate_text(chance, cells[place].decode()) * chance.choice([1, 1, 300])
    odd = chance.choice([*NUMBERS, text.encode("utf-8", "surrogatepass")])
    cells[place] = b'"' + odd.replace(b'"', b'""') + b'"'
    return b"\n".join([*above, b",".join(cells)]) + b"\n"


def write(runs, results):
    """The tables of runs, as plots.py writes them."""
    report = results.parent / "report"
    return write_comparison(*compare(runs, plots.STUDY), report, plots.STUDY, find_tuners(results), [])[0]


def check_values(run, folder):
    """A run that is shown has the values of its file."""
    with open(folder / "summary.csv", encoding="utf-8-sig", newline="") as file:
        head, cells = [[cell.strip() for cell in line] for line in csv.reader(file) if any(map(str.strip, line))]
    row = dict(zip(head, cells, strict=False))  # the head may have lost names at its end
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    for column in NEEDED:
        value = run.summary[column]
        if isinstance(value, str):
            assert plain(value) == plain(row[column])
        else:
            assert float(value) == pytest.approx(float(row[column]))


def test_a_mutated_run_is_named_and_skipped_or_shown(results, monkeypatch):
    monkeypatch.setattr("comparison.report.charts", lambda *_: {})  # takes seconds; drawn in the next test
    monkeypatch.setattr("comparison.report.weak_charts", lambda *_: {})
    folder, shown = results / "other", []
    files = {name: (folder / name).read_bytes() for name in ("run.json", "summary.csv", "steps.csv", "evaluations.csv")}

    def check(chance):
        for name, content in files.items():
            (folder / name).write_bytes(content)
        name = chance.choice([*files, "summary.csv", "summary.csv"])
        kinds = [mutate_bytes] if name == "run.json" else [mutate_bytes, mutate_cell, mutate_cell,
                                                          lambda *given: mutate_table(*given, b",")]
        content = chance.choice(kinds)(chance, files[name])
        if name == "run.json" and chance.random() < 0.5:
            content = mutate_json(chance, json.loads(files[name]) | {"flags": {"seed": 0}})
        (folder / name).write_bytes(content)
        found, lines = quietly(find_runs, folder, plots.STUDY)
        if not found:
            [line] = without_notes(lines)
            assert line.startswith(f"left out {folder}: ") and len(line) < 1000
            assert any(place in line for place in ("run.json", "its status", name))
            return "skipped"
        assert len(found) == 1 and without_notes(lines) == []
        check_values(found[0], folder)
        shown.extend(found if name == "summary.csv" else [])  # the tables show nothing else
        return "shown"

    outcomes = count_outcomes(300, check)
    assert min(outcomes["shown"], outcomes["skipped"]) > 60, outcomes
    good, lines = quietly(find_runs, results, plots.STUDY)
    for first in range(0, len(shown), 40):
        text, lines = quietly(write, [*good, *shown[first:first + 40]], results)
        assert "| 1 device " in text and "| DDP x 2 " in text and not lines
        tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
        assert all(len({line.replace("\\|", "").count("|") for line in table}) == 1 for table in tables)


@pytest.mark.filterwarnings("ignore:constrained_layout")  # figures have no room for a number of fifty digits
def test_odd_names_and_numbers_are_drawn(tmp_path):
    results = tmp_path / "results"
    for number, model in enumerate(["$x^{$", "m" * 300]):
        write_run(results / f"one{number}", model=model, throughput=1e-25)
        write_run(results / f"two{number}", "$\\frac{$|", 2, model=model, throughput=1e25, validation_loss=-1e30)
    runs, lines = quietly(find_runs, results, plots.STUDY)
    assert len(runs) == 4 and without_notes(lines) == []
    text, lines = quietly(write, runs, results)
    assert "$\\frac{$\\| x 2" in text and not lines
    names = [path.name for path in (tmp_path / "report" / "figures").glob("*.png")]
    assert len([name for name in names if name.endswith("throughput_samples_per_s.png")]) == 2


def test_a_mutated_tuner_is_named_and_skipped_or_shown(tmp_path):
    write_tuner(tmp_path)
    summary, settings = tmp_path / "summary.txt", tmp_path / "z1_gas1_tmbspg32" / "ds_config.json"
    files = {path: path.read_bytes() for path in (summary, settings)}

    def check(chance):
        for path, content in files.items():
            path.write_bytes(content)
        path = chance.choice([*files])
        if path == settings and chance.random() < 0.7:
            path.write_bytes(mutate_json(chance, json.loads(files[path])))
        else:
            path.write_bytes(mutate_bytes(chance, files[path]))
        tuners, lines = quietly(find_tuners, tmp_path)
        tuner_parts(tuners)
        assert len(lines) == (not len(tuners)) and all(line.startswith(f"left out {summary}: ") for line in lines)
        return "skipped" if lines else "shown"

    outcomes = count_outcomes(100, check)
    assert min(outcomes["shown"], outcomes["skipped"]) > 15, outcomes

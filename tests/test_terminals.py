"""Names that are not UTF-8, terminals that cannot show every character, readers that stop reading."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import plots
from comparison.autotuning import find_tuners
from comparison.report import write_comparison
from comparison.rows import compare
from comparison.runs import find_runs
from tests.shared.made_up_runs import write_run, write_tuner
from tests.shared.runs import EXACT, ROOT
from tests.shared.small_inputs import FILES
from workload.arguments import Arguments, parse_arguments
from workload.atomic_files import write_json
from workload.errors import InputError
from workload.storage import check_names
from workload.tasks.registry import TASKS

NO_UTF8 = os.fsdecode(b"caf\xe9")  # in Latin-1
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {"ASCII locale": ASCII, "Latin-1": {"PYTHONIOENCODING": "latin-1"},
             "strict UTF-8": {"PYTHONIOENCODING": "utf-8:strict"}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs in a folder whose name is not UTF-8, one of which is broken."""
    root = tmp_path_factory.mktemp("results") / NO_UTF8
    write_run(root / "run", throughput=50)
    write_run(root / "two", devices=2, throughput=98, seed=0)
    write_run(root / NO_UTF8, devices=2, throughput=102, seed=1)
    write_run(root / f"broken {NO_UTF8}", status="failed")
    return root


def run_plots(results, tmp_path, variables=None, **streams):
    return subprocess.Popen([sys.executable, "plots.py", results, "--output_dir", tmp_path / NO_UTF8], cwd=ROOT,
                            env=os.environ | (variables or {}), **streams)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_plots_prints_to_any_terminal(results, tmp_path, terminal):
    process = run_plots(results, tmp_path, TERMINALS[terminal], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count(b"\n") == 1 and err.startswith(b"left out ")
    row = next(line for line in out.splitlines() if line.startswith(b"| DDP x 2 "))
    assert b"100 \xc2\xb1 30" in row or b"100 \xb1 30" in row or b"100 ? 30" in row
    tables = [part.splitlines() for part in out.decode("utf-8", "replace").split("\n\n") if part.startswith("|")]
    assert tables and all(len({len(line) for line in table}) == 1 for table in tables), "they stay aligned"
    assert "100 ± 30" in (tmp_path / NO_UTF8 / "comparison.md").read_text(encoding="utf-8")


def test_a_reader_that_stops_takes_no_file_with_it(results, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = run_plots(results, tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait() == 0
    assert (tmp_path / NO_UTF8 / "comparison.md").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_that_cannot_be_written_is_one_line(results, tmp_path):
    with open("/dev/full", "w") as full:
        process = run_plots(results, tmp_path, stdout=full, stderr=subprocess.PIPE)
    err = process.communicate()[1].decode().splitlines()
    assert process.returncode == 2 and "cannot be printed (No space left on device)" in err[-1] and len(err) == 2


def test_no_output_at_all(results, tmp_path):
    command = f'"{sys.executable}" plots.py "$1" --output_dir "$2" >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", results, tmp_path], cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "comparison.md").is_file()


def test_a_tuner_in_such_a_folder_is_shown(tmp_path):
    write_run(tmp_path / "run")
    write_tuner(tmp_path / NO_UTF8)
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    text, _ = write_comparison(rows, members, tmp_path, plots.STUDY, find_tuners(tmp_path), [])
    assert rf"{tmp_path.name}/caf\xe9)" in text


def test_records_name_such_files(tmp_path):
    """run.json says which bytes they are."""
    path = tmp_path / NO_UTF8 / "run.json"
    path.parent.mkdir()
    write_json(path, {"file": NO_UTF8, "other": "caf\u00e9 \U0001f600"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"file": NO_UTF8, "other": "caf\u00e9 \U0001f600"}


# ---------------------------------------------------------------------- training

@pytest.mark.parametrize("flag", ["model", "tokenizer", "output_dir", "run_name"])
def test_a_name_that_libraries_cannot_open_is_refused(flag):
    arguments = parse_arguments(Arguments, ["--sample", "--model", "tiny", f"--{flag}", NO_UTF8])
    with pytest.raises(InputError, match=f"^--{flag} caf.: this name is not UTF-8 text"):
        check_names(arguments)
    check_names(parse_arguments(Arguments, ["--sample", "--model", "tiny", f"--{flag}", "caf\u00e9"]))


def test_so_is_a_cache_of_such_a_name(monkeypatch, tmp_path):
    (tmp_path / NO_UTF8).mkdir()
    monkeypatch.chdir(tmp_path / NO_UTF8)
    for cache in ("cache", str(tmp_path / NO_UTF8)):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        with pytest.raises(InputError, match="^HF_HOME, the cache: .*this name is not UTF-8 text"):
            check_names(parse_arguments(Arguments, ["--sample", "--model", "tiny"]))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", TASKS)
def test_data_may_have_such_a_name(tmp_path, task):
    name, content = FILES[task]
    path = tmp_path / NO_UTF8 / name
    path.parent.mkdir()
    path.write_bytes(content)
    files = ["--train_file", str(path), "--eval_file", str(path)]
    words = ["--task", task, "--model", "tiny", "--max_seq_length", "8", *files]
    opened = TASKS[task](parse_arguments(Arguments, words))
    opened.load()
    assert len(opened.samples("train"))


def test_a_run_prints_to_an_ascii_terminal_and_outlives_the_reader_of_its_bar(tmp_path, environment):
    """With DeepSpeed, whose libraries read files of their own in the locale's encoding."""
    data = tmp_path / NO_UTF8
    data.mkdir()
    for file in ("train.json", "eval.json", "../../ds_config.json"):
        shutil.copy(ROOT / "data" / "squad_v2" / file, data)
    words = [word for word in EXACT if word not in ("--sample", "--save_model")]
    command = [sys.executable, "pipeline.py", *words, "--max_steps", "2", "--max_train_examples", "64",
               "--max_eval_examples", "8", "--train_file", data / "train.json", "--eval_file", data / "eval.json",
               "--deepspeed_config", data / "ds_config.json", "--output_dir", tmp_path / "out",
               "--micro_batches", "8"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "--run_name", "run"], cwd=ROOT, env=environment | ASCII, timeout=240,
                          stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    assert done.returncode == 0
    assert done.stdout.startswith(b"run: 64 samples in ")
    description = json.loads((tmp_path / "out" / "run" / "run.json").read_text(encoding="utf-8"))
    assert description["status"] == "finished" and description["data"]["train"]["file"] == str(data / "train.json")

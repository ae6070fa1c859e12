"""A disk that is full or may not be written to: one line, and everything that was written before is whole."""

import contextlib
import csv
import json
import resource
import subprocess
from pathlib import Path

import psutil
import pytest

from measurement.columns import STEP_COLUMNS
from measurement.run_json import release_space, reserve_space
from measurement.table import Table
from tests.shared.runs import stray_lines
from workload.atomic_files import write_json
from workload.errors import storage_problem

SHORT = ["--sample", "--model", "tiny", "--max_seq_length", "64", "--max_steps", "10", "--global_batch_size", "8",
         "--max_train_examples", "40", "--max_eval_examples", "10", "--cpu_threads", "1", "--noise_scale_steps", "0",
         "--run_name", "run"]
LONG = [*SHORT, "--max_steps", "400", "--eval_steps", "400"]  # steps.csv would have some 60 KB
ROOM = 56 * 1024


@pytest.fixture
def disk(tmp_path):
    """A disk of its own of 56 KiB, with an earlier run on it."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    write_earlier_run(place)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def write_earlier_run(output_dir: Path) -> None:
    (output_dir / "earlier").mkdir()
    (output_dir / "earlier" / "run.json").write_text('{"status": "finished"}')
    (output_dir / "earlier" / "steps.csv").write_text("step,train_loss\n1,5.5\n")


def assert_earlier_run_is_intact(output_dir: Path) -> None:
    files = {file.name: file.read_text() for file in (output_dir / "earlier").iterdir()}
    assert files == {"run.json": '{"status": "finished"}', "steps.csv": "step,train_loss\n1,5.5\n"}


def error_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stderr
    [line] = stray_lines(done)
    assert done.stdout == "" and line.startswith("error: ")
    return line


def assert_ended_clearly(run: Path, cause: str) -> None:
    """The record says why, its rows are whole, and nobody lives on."""
    description = json.loads((run / "run.json").read_text())
    assert description["status"] == "failed" and cause in description["reason"] and description["ended"]
    text = (run / "steps.csv").read_text()
    rows = list(csv.reader(text.splitlines()))
    assert text.endswith("\n") and len(rows) > 10 and rows[0] == STEP_COLUMNS
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(1, len(rows))]
    assert {len(row) for row in rows} == {len(STEP_COLUMNS)}
    assert not (run / "summary.csv").exists()
    assert [file.name for file in run.glob(".*")] == [".lock"], "nothing half written is left"
    assert not any(psutil.pid_exists(rank["pid"]) for rank in description["ranks"])


# ---------------------------------------------------------------------- whole runs

@pytest.mark.parametrize("count", [1, 2])
def test_a_read_only_disk_is_seen_before_anything_begins(count, disk, start_ranks):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    line = error_line(start_ranks("bert_baseline.py", *SHORT, "--output_dir", disk / "deeper" / "out", count=count))
    assert f"--output_dir {disk}/deeper/out: {disk} is on a read-only file system" in line and "use a folder" in line
    assert_earlier_run_is_intact(disk)


@pytest.mark.parametrize("place, words", [("a_file", "is not a folder"), ("/proc/nowhere", "/proc")])
def test_a_place_where_no_folder_can_be(place, words, start_ranks, tmp_path):
    (tmp_path / "a_file").write_text("precious")
    line = error_line(start_ranks("bert_baseline.py", *SHORT, "--output_dir", tmp_path / place / "out"))
    assert line.startswith(f"error: --output_dir {tmp_path / place / 'out'}: ") and words in line
    assert (tmp_path / "a_file").read_text() == "precious"


def test_a_disk_that_runs_full_ends_all_ranks(disk, start_ranks):
    line = error_line(start_ranks("bert_baseline.py", *LONG, "--output_dir", disk, count=2))
    assert f"{disk}/run/" in line and "No space left on device" in line
    assert_ended_clearly(disk / "run", "No space left on device")
    assert_earlier_run_is_intact(disk)


@pytest.mark.parametrize("room", [0, 8 * 1024])
def test_a_disk_without_room_for_a_run_leaves_no_run(room, disk, start_ranks):
    fill(disk, room)
    line = error_line(start_ranks("bert_baseline.py", *SHORT, "--output_dir", disk))
    assert str(disk / "run") in line and "No space left on device" in line
    left = {file.name for file in (disk / "run").rglob("*")}
    assert "run.json" not in left or json.loads((disk / "run" / "run.json").read_text())["status"] == "failed"
    assert_earlier_run_is_intact(disk)


def test_a_model_for_which_there_is_no_room(disk, start_ranks):
    line = error_line(start_ranks("bert_baseline.py", *SHORT, "--save_model", "--output_dir", disk))
    assert f"{disk}/run" in line and "No space left on device" in line
    assert_ended_clearly(disk / "run", "No space left on device")


def test_a_checkpoint_for_which_there_is_no_room(disk, start_ranks):
    """Nothing of it is left, and with more room the run resumes from the one before."""
    command = ["bert_baseline.py", *SHORT, "--checkpoint_steps", "4", "--output_dir", disk]
    subprocess.run(["mount", "-o", f"remount,size={13 * 2**20}", disk], check=True)  # one takes 8.3
    line = error_line(start_ranks(*command, count=2))
    assert f"{disk}/run" in line and "No space left on device" in line
    description = json.loads((disk / "run" / "run.json").read_text())
    assert description["status"] == "failed" and "No space left on device" in description["reason"]
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-4"]
    assert_earlier_run_is_intact(disk)

    subprocess.run(["mount", "-o", f"remount,size={40 * 2**20}", disk], check=True)
    start_ranks(*command, "--resume", count=2, check=True)
    with open(disk / "run" / "steps.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 11))


# ---------------------------------------------------------------------- files

def fill(disk: Path, room: int) -> None:
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with open(disk / "filler", "r+b") as file:
        file.truncate(max((disk / "filler").stat().st_size - room, 0))


@contextlib.contextmanager
def largest_file(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_table_ends_with_a_whole_row(tmp_path):
    table = Table(tmp_path / "table.csv", ["first", "second"])
    with largest_file(30), pytest.raises(OSError) as caught:
        for number in range(10):
            table.add(first=number, second="some text")
    assert caught.value.filename == str(tmp_path / "table.csv")
    table.add(first=3, second="room again")
    table.close()
    assert (tmp_path / "table.csv").read_text() == "first,second\n0,some text\n3,room again\n"


def test_json_is_old_or_new_but_never_half(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    with largest_file(100), pytest.raises(OSError) as caught:
        write_json(path, {"status": "finished", "more": "x" * 200})
    assert caught.value.filename == str(path)
    assert json.loads(path.read_text()) == {"status": "running"}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_room_is_kept_for_the_last_words(disk):
    path = disk / "run.json"
    reserve_space(path, {"ranks": "x" * 5000})
    write_json(path, {"ranks": "x" * 5000})
    fill(disk, 0)
    with pytest.raises(OSError):
        write_json(path, {"ranks": "x" * 5000, "reason": "full"})
    release_space(path)
    write_json(path, {"ranks": "x" * 5000, "reason": "full"})
    assert json.loads(path.read_text())["reason"] == "full"


def test_only_what_a_user_can_mend_is_one_line():
    assert storage_problem(OSError(28, "No space left on device", "a.csv")) == (
        "a.csv: No space left on device; make room there")
    in_a_run = storage_problem(RuntimeError("I/O error: No space left on device (os error 28)"), Path("results/run"))
    assert in_a_run == "results/run: No space left on device; make room there, or give another --output_dir"
    wrapped = RuntimeError("cannot be cached")
    wrapped.__cause__ = OSError(30, "Read-only file system", "cache")
    assert storage_problem(wrapped) == "cache: Read-only file system"
    elsewhere = storage_problem(OSError(30, "Read-only file system", "cache"), Path("results/run"))
    assert elsewhere == "cache: Read-only file system", "another --output_dir would not help"
    assert storage_problem(FileNotFoundError(2, "No such file or directory", "a.csv")) is None
    assert storage_problem(PermissionError(1, "Operation not permitted"), Path("run")) is None, "of a signal, say"

"""What launchers, containers and old jobs leave in the environment, and how a process ends."""

import signal
import socket
import subprocess
import sys

import pytest

from tests.shared.runs import ROOT
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError, one_line_errors
from workload.launch import launcher
from workload.launch.processes import join
from workload.launch.start import devices_asked_for

ALONE = dict.fromkeys(["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])


@pytest.mark.parametrize("left_behind", [
    {}, {"RANK": "3"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "3"}, {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1"},
    {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    {"WORLD_SIZE": "", "RANK": ""},
    {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "train-master-0", "MASTER_PORT": "23456"},  # a container of one
    {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {"LOCAL_SIZE": "2"},
])
def test_what_is_left_behind_does_not_count(left_behind, launched):
    launched(**ALONE | left_behind)
    assert devices_asked_for(3) == 3
    assert (launcher.processes(), launcher.rank(), launcher.nodes(), launcher.node()) == (0, 0, 1, 0)


@pytest.mark.parametrize("changed, words", [
    ({"LOCAL_RANK": None}, ["WORLD_SIZE is 2", "LOCAL_RANK is not set", "torchrun", "unset WORLD_SIZE"]),
    ({"LOCAL_RANK": None, "RANK": "1"}, ["LOCAL_RANK is not set"]),
    ({"RANK": None}, ["RANK is not set"]), ({"MASTER_ADDR": None}, ["MASTER_ADDR is not set"]),
    ({"MASTER_PORT": ""}, ["MASTER_PORT is not set"]), ({"RANK": "2"}, ["RANK is 2", "WORLD_SIZE is 2"]),
    ({"WORLD_SIZE": "two"}, ["WORLD_SIZE", "'two'"]), ({"RANK": "-1"}, ["RANK", "'-1'"]),
    ({"MASTER_PORT": "65536"}, ["MASTER_PORT is 65536"]),
    ({"MASTER_PORT": "http"}, ["MASTER_PORT", "'http'"]), ({"GROUP_WORLD_SIZE": "x"}, ["GROUP_WORLD_SIZE", "'x'"]),
    (ALONE | {"SLURM_STEP_NUM_TASKS": "8"}, ["srun started this script 8 times", "torchrun"]),
    (ALONE | {"OMPI_COMM_WORLD_SIZE": "4"}, ["mpirun started this script 4 times", "torchrun"]),
])
def test_half_of_a_launchers_variables_is_refused(changed, words, launched):
    launched(**changed)
    with pytest.raises(InputError) as caught:
        devices_asked_for(None)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert launcher.rank() == 0, "nobody else would say it"


def test_a_launchers_word_counts(launched):
    launched(RANK="1", LOCAL_RANK="1", SLURM_PROCID="0", CROSS_RANK="1", CROSS_SIZE="2")
    assert (devices_asked_for(None), launcher.processes()) == (2, 2)
    assert (launcher.rank(), launcher.local_rank(), launcher.nodes(), launcher.node()) == (1, 1, 2, 1)


@pytest.mark.parametrize("words", [["--local-rank=1"], ["--local_rank=1"], ["--local_rank", "1"]])
def test_old_launchers_pass_the_local_rank_as_a_flag(words, launched):
    launched(RANK="1", LOCAL_RANK="1")
    assert parse_arguments(Arguments, [*words, "--seed", "3"]).given == {"seed"}
    assert launcher.without_local_rank(["--seed", "3", *words, "--sample"]) == ["--seed", "3", "--sample"]
    with pytest.raises(InputError, match="--local_rank 0: launchers set this flag"):
        parse_arguments(Arguments, ["--local_rank=0"])


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # ours, PyTorch's own
def test_a_port_that_is_taken_is_named(address, launched, monkeypatch):
    for name in ("workload.launch.processes.keep_freed_memory", "torch.set_num_threads"):
        monkeypatch.setattr(name, lambda *_: None)
    with socket.create_server((address, 0)) as taken:
        port = str(taken.getsockname()[1])
        launched(WORLD_SIZE="1", MASTER_ADDR=address, MASTER_PORT=port)
        with pytest.raises(InputError, match=f"port {port} of this machine is in use.*--master_port"):
            join(1, 1)


# ---------------------------------------------------------------------- how a process ends

# Where a process leaves by Python's own end, the C library runs its exit handlers, among them those of libraries whose
# threads are still at work: here one that aborts for sure.
ENDING = """
import ctypes
import errno
import sys

from workload.errors import InputError, one_line_errors

libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)
with one_line_errors():
    print("said before")
    {statement}
"""


@pytest.mark.parametrize("statement, code, said", [
    ("raise InputError('--seed: too\\nlarge')", 2, "error: --seed: too large\n"),
    ("raise OSError(errno.ENOSPC, 'full', 'run.json')", 2, "error: run.json: No space left on device; make room"),
    ("sys.exit(75)", 75, ""), ("sys.exit()", 0, ""), ("sys.exit('in words')", 1, "in words\n"),
    ("raise ValueError('a bug')", 1, "ValueError: a bug\n"), ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
])
def test_every_exit_leaves_by_the_same_door(statement, code, said):
    done = subprocess.run([sys.executable, "-c", ENDING.format(statement=statement)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "said before\n"), done.stderr
    assert said in done.stderr and ("Traceback" in done.stderr) == (said.strip() in ("ValueError: a bug",
                                                                                      "KeyboardInterrupt"))


def test_a_crash_in_native_code_says_where():
    done = subprocess.run([sys.executable, "-c", ENDING.format(statement="ctypes.string_at(0)")], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr and "in string_at" in done.stderr


@pytest.mark.parametrize("variables, waits, speaks", [
    ({"RANK": "0"}, False, True), ({"RANK": "1"}, True, True),  # nobody ended it meanwhile: only this rank knows
    ({"RANK": "1", "LOCAL_RANK": None}, False, True),
    (ALONE | {"SLURM_PROCID": "3"}, False, True),
    (ALONE | {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, True, True),  # or the variables are left over
])
def test_who_speaks(variables, waits, speaks, launched, monkeypatch, capsys):
    """Of processes that meet the same error one says it, and none keeps it to itself."""
    ends, waited = [], []
    monkeypatch.setattr("workload.errors.end_process", ends.append)
    monkeypatch.setattr("time.sleep", waited.append)
    launched(**variables)
    with one_line_errors():
        raise InputError("wrong")
    assert ends == [2] and bool(waited) == waits
    assert capsys.readouterr().err == "error: wrong\n" * speaks

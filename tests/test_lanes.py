"""What the tests themselves keep to: a lane for each, and no test module that imports another."""

import ast
import os
import subprocess
import sys

import pytest

from tests.shared import warm_ranks
from tests.shared.lanes import processes_of
from tests.shared.runs import ROOT


@pytest.mark.parametrize("command", [
    [sys.executable, "bert_baseline.py", "--num_gpus", "2"], ["torchrun", "zero.py"],
    ["env", "LOCAL_SIZE=1", "deepspeed", "--num_gpus", "2", "pipeline.py"], f"{sys.executable} {ROOT}/fsdp.py"])
def test_the_first_lane_starts_no_training(command):
    with pytest.raises(pytest.fail.Exception, match="in a lane that allows 0"):
        subprocess.run(command, shell=isinstance(command, str))


def test_nor_does_it_start_ranks(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="in a lane that allows 0"):
        warm_ranks.run_ranks("bert_baseline.py", [], 1, dict(os.environ), tmp_path, 10)


def test_four_processes_are_for_the_slow_lane(train, start_ranks):
    for run in (lambda: train("bert_baseline.py", "--num_gpus", "4"),
                lambda: start_ranks("bert_baseline.py", count=4)):
        with pytest.raises(pytest.fail.Exception, match="4 processes in a lane that allows 3; use the fixture slow"):
            run()


def test_what_only_looks_like_training_may_be_started():
    for command in ([sys.executable, "-c", "pass", "bert_baseline.py"], ["echo", "zero.py", "--num_gpus", "8"]):
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_processes_of_a_command():
    assert processes_of(("torchrun", "--nproc-per-node", "2", "bert_baseline.py", "--num_gpus", "4")) == 4
    assert processes_of(["zero.py"]) == processes_of("--num_gpus") == processes_of(7) == 1


def imported(file) -> set[str]:
    """The names of the modules that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_module_imports_a_test_module_or_conftest():
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 60
    for file in files:
        for name in imported(file):
            assert not name.startswith(("tests.test_", "tests.conftest", "conftest")), file

"""A run that is told to stop writes a checkpoint and says so; a run that cannot is ended; nothing is left behind."""

import fcntl
import json
import math
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.shared import warm_ranks
from tests.shared.runs import EXACT, FinishedRun

TRY_AGAIN = 75
STEPS = ["--max_steps", "1000", "--eval_steps", "1000", "--checkpoint_steps", "900"]


class LiveRun:
    """A run that lasts for minutes, in `count` ranks; a single one starts the ranks that its flags ask for."""

    def __init__(self, environment: dict[str, str], folder: Path, script: str, words: tuple[str, ...], count: int):
        self.folder = folder / "run"
        words = [*EXACT, *STEPS, *words, "--output_dir", str(folder), "--run_name", "run"]
        self.processes, outputs = warm_ranks.start_ranks(script, words, count, environment, folder)
        self.process, self.errors = self.processes[0], outputs[0][1]
        deadline = time.monotonic() + 120
        while self.steps() < 3 and time.monotonic() < deadline and self.exit_code() is None:
            time.sleep(0.1)
        assert self.exit_code() is None, self.said()
        self.ranks = [rank["pid"] for rank in self.run().description["ranks"]]

    def exit_code(self) -> int | None:
        for process in self.processes:
            process.join(0)  # else one that has ended still has its number
        return self.process.exitcode

    def said(self) -> str:
        return self.errors.read_text()

    def run(self) -> FinishedRun:
        return FinishedRun(self.folder, None)

    def steps(self) -> int:
        return (self.folder / "steps.csv").read_text().count("\n") - 1 if (self.folder / "steps.csv").exists() else 0

    def wait(self, seconds: float) -> int:
        """Wait until the command and every rank have ended; returns the command's exit code."""
        deadline = time.monotonic() + seconds
        while self.exit_code() is None or any(map(psutil.pid_exists, self.ranks)):
            assert time.monotonic() < deadline, "a rank lives on"
            time.sleep(0.1)
        return self.exit_code()

    def kill(self) -> None:
        for pid in [self.process.pid, *getattr(self, "ranks", [])]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def live(environment, slow_lane, tmp_path):
    """Start a run that lasts for minutes; the test's end kills what is left of it."""
    runs = []

    def live(script: str, *words: str, count: int = 1) -> LiveRun:
        runs.append(LiveRun(environment, tmp_path, script, words, count))
        return runs[-1]
    yield live
    for run in runs:
        run.kill()


@pytest.mark.parametrize("script, count, number", [
    ("bert_baseline.py", 2, signal.SIGUSR1), ("pipeline.py", 1, signal.SIGTERM)])
def test_a_run_that_is_told_to_stop_leaves_a_checkpoint(script, count, number, live):
    """The signal goes to one rank alone, or to the command."""
    run = live(script, "--num_gpus", "2", count=count)
    os.kill(run.ranks[1] if count == 2 else run.process.pid, number)
    assert run.wait(30) == TRY_AGAIN
    description, [checkpoint] = run.run().description, list((run.folder / "checkpoints").iterdir())
    step = run.run().rows("steps.csv")[-1]["step"]
    assert checkpoint.name == f"step-{step}" and (checkpoint / "state.json").exists()
    assert description["status"] == "stopped" and description["reason"] == f"{number.name}, after step {step}"
    said = [line for line in run.said().replace("\r", "\n").splitlines() if "--resume" in line]
    assert len(said) == 1 and number.name in said[0] and "Traceback" not in said[0]


def test_a_run_is_written_by_one_process_and_ctrl_c_writes_a_checkpoint(live, start_ranks):
    run = live("bert_baseline.py", "--num_gpus", "1")
    for flags in (["--overwrite"], ["--resume", "auto"]):
        done = start_ranks("bert_baseline.py", *EXACT, "--output_dir", run.folder.parent, "--run_name", "run", *flags)
        assert done.returncode == 2 and "a running process" in done.stderr and done.stderr.count("\n") == 1
    before = run.steps()
    time.sleep(1)
    assert run.exit_code() is None and run.steps() > before and run.run().description["status"] == "running"
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait(30) == TRY_AGAIN
    assert list((run.folder / "checkpoints").iterdir())
    with open(run.folder / ".lock") as file:  # the system has let it go
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_ctrl_c_ends_at_once(live):
    run = live("bert_baseline.py", "--num_gpus", "2")
    for rank in run.ranks:
        os.kill(rank, signal.SIGSTOP)  # so that the step cannot end
    for _ in range(2):
        os.kill(run.process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert run.wait(8) == 128 + signal.SIGINT


def test_ranks_notice_that_their_launcher_died(live):
    run = live("bert_baseline.py", "--num_gpus", "2")
    run.process.kill()
    run.wait(20)
    assert run.run().description["status"] == "stopped"
    assert "the launcher's death" in run.run().description["reason"]
    assert list((run.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("script, victim", [("bert_baseline.py", 1), ("pipeline.py", 0)])
def test_a_rank_that_dies_takes_the_others_down(script, victim, live):
    """A rank is killed: none hangs, none lives on, and the record says failed."""
    run = live(script, "--num_gpus", "2")
    assert run.run().description["status"] == "running"
    before = run.steps()
    os.kill(run.ranks[victim], signal.SIGKILL)
    assert run.wait(20) not in (0, 2)
    assert run.run().description["status"] == "failed" and run.run().description["reason"]
    assert len(run.run().rows("steps.csv")) >= before >= 3, "nothing that was recorded is lost"
    assert not (run.folder / "summary.csv").exists()


def test_a_rank_that_hangs_is_named(live):
    run = live("bert_baseline.py", "--num_gpus", "2", "--hang_timeout_s", "5", count=2)
    os.kill(run.ranks[1], signal.SIGSTOP)
    assert run.wait(40) not in (0, 2, TRY_AGAIN)
    reason = run.run().description["reason"]
    assert "rank 1" in reason and run.run().description["status"] == "failed", reason
    assert json.loads((run.folder / "run.json").read_text())["ended"]


def test_out_of_memory_says_which_flag_to_lower(start_ranks, tmp_path):
    done = start_ranks("tests/scripts/out_of_memory.py", *EXACT, "--output_dir", tmp_path, "--run_name", "run")
    assert done.returncode == 1
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert said == ["error: out of memory on cpu; lower --micro_batch_size (now 4)"] and "Traceback" not in done.stderr
    assert FinishedRun(tmp_path / "run", None).description["status"] == "out_of_memory"


HUGE = ["--learning_rate", "1e30", "--lr_scheduler", "constant", "--checkpoint_steps", "1"]


@pytest.mark.parametrize("command", [("bert_baseline.py", "--num_gpus", "2"), ("pipeline.py", "--num_gpus", "2")])
def test_a_loss_that_is_no_number_ends_the_run(command, start_ranks, tmp_path):
    done = start_ranks(command[0], *EXACT, *HUGE, *command[1:], "--output_dir", tmp_path, "--run_name", "run", count=2)
    assert done.returncode == 1
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "learning rate 1e+30" in said[0] and "Traceback" not in done.stderr, done.stderr
    run = FinishedRun(tmp_path / "run", None)
    step = int(run.rows("steps.csv")[-1]["step"])
    assert f"step {step}:" in said[0] and f"last good checkpoint: step-{step - 1}" in said[0]
    assert run.description["status"] == "failed"


def test_where_steps_are_not_recorded_an_evaluation_ends_the_run(start_ranks, tmp_path):
    done = start_ranks("bert_baseline.py", *EXACT, *HUGE[:4], "--measure", "throughput", "--noise_scale_steps", "0",
                       "--eval_steps", "2", "--max_eval_examples", "8", "--output_dir", tmp_path, "--run_name", "run")
    assert done.returncode == 1
    [said] = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert "step 2: validation loss nan" in said
    assert FinishedRun(tmp_path / "run", None).description["status"] == "failed"


@pytest.mark.parametrize("command", [
    ("bert_baseline.py", "--num_gpus", "2"), ("fsdp.py", "--num_gpus", "2"), ("pipeline.py", "--num_gpus", "2"),
    ("tensor_parallel.py", "--num_gpus", "2"),
    ("zero.py", "--num_gpus", "2", "--stage", "2"), ("zero.py", "--num_gpus", "2", "--stage", "3"),
    ("hf_trainer.py", "--num_gpus", "2")], ids="-".join)
def test_steps_that_are_not_finite_are_left_out_and_counted(command, train):
    """The first step ruins the model: all others are left out, and the run finishes."""
    run = train(command[0], *HUGE[:4], "--skip_nonfinite", "--max_steps", "4", *command[1:])
    losses = run.column("train_loss")
    ruined = [number for number, loss in enumerate(losses) if loss != loss or abs(loss) == float("inf")]
    assert ruined and int(run.summary["skipped_steps"]) >= len(ruined)
    assert all(weight.isfinite().all() for weight in run.weights().values())


def test_steps_that_fp16_skips_are_counted(train):
    run = train("tests/scripts/overflowing_fp16.py", "--num_gpus", "1", "--precision", "fp16", "--max_steps", "3",
                "--max_eval_examples", "8")
    assert not any(map(math.isfinite, run.column("grad_norm")))
    assert run.summary["skipped_steps"] == "3"
    assert run.description["status"] == "finished"

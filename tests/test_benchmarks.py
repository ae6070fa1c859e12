"""Benchmarks can be started, and those that reach into a run still can; what they measure is not tested."""

import importlib
import json

import pytest

from tests.shared.runs import ROOT

SMALL = ("--sample --model tiny --max_seq_length 64 --global_batch_size 8 --max_train_examples 64 "
         "--max_eval_examples 8 --cpu_threads 1 --num_gpus 1")


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("benchmarks/[!_]*.py")))
def test_a_benchmark_finds_what_it_imports(name):
    importlib.import_module(f"benchmarks.{name}")


def test_a_bare_loop_takes_turns_with_the_script(start_ranks):
    done = start_ranks("benchmarks/bare_loop.py", "--stretches", "1", f"--flags={SMALL}", check=True)
    script, ready, loop = done.stdout.splitlines()
    assert "a step of the script: " in script and "ready: " in ready and "loop that reads its batches: " in loop


def test_stretches_are_measured_and_not_in_turn(start_ranks, environment, monkeypatch, tmp_path):
    monkeypatch.setitem(environment, "ALTERNATING_SCRIPT", "bert_baseline")
    monkeypatch.setitem(environment, "ALTERNATING_RESULT", str(tmp_path / "stretches.json"))
    start_ranks("benchmarks/alternating.py", *SMALL.split(), "--max_steps", "33", "--eval_steps", "33",
                "--output_dir", tmp_path, check=True)
    stretches = json.loads((tmp_path / "stretches.json").read_text())
    assert [stretch["measured"] for stretch in stretches] == [True, False]
    assert all(stretch["seconds"] > 0 and stretch["tokens"] > 0 for stretch in stretches)

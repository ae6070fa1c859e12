"""Flags and ways of starting: what works, and the one line that a wrong input gets."""

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shared.runs import EXACT, ROOT, SAMPLE, stray_lines
from workload.argument_checks import group_size
from workload.arguments import Arguments, FsdpArguments, PipelineArguments, ZeroArguments, parse_arguments
from workload.batches import plan_stages
from workload.deepspeed_settings.config import read_deepspeed_config
from workload.deepspeed_settings.flags import check_second_copy
from workload.errors import InputError
from workload.flag_groups import grouped
from workload.job import prepare
from workload.optimizer import build_lr_schedule, build_optimizer, warmup_steps


def refusal(flags: list[str], devices: int = 2, kind=PipelineArguments) -> str:
    """The line that these flags get before anything is started."""
    with pytest.raises(InputError) as caught:
        arguments = parse_arguments(kind, flags)
        stages, micro_batches = 1, None
        if kind is PipelineArguments:
            stages, micro_batches = plan_stages(arguments.stages, arguments.micro_batches,
                                                arguments.global_batch_size, devices)
            read_deepspeed_config(arguments)
        prepare("pipeline", arguments, devices, stages, micro_batches)
        raise AssertionError("was not refused")
    return str(caught.value)


@pytest.mark.parametrize("flags, words", [
    (["--learnin_rate", "1"], ["--learnin_rate", "did you mean --learning_rate"]),
    (["--learning", "1"], ["unknown flag --learning"]),  # abbreviated
    (["--lr=1"], ["unknown flag --lr"]),
    (["positional"], ["unknown argument positional"]),
    (["--precision", "fp8"], ["--precision", "fp8", "bf16"]),
    (["--task", "squad"], ["--task", "squad_v2"]),
    (["--max_steps", "many"], ["--max_steps", "many"]),
    (["--max_steps", "0"], ["--max_steps 0", "at least 1"]),
    (["--global_batch_size", "-4"], ["--global_batch_size -4"]),
    (["--dropout", "1"], ["--dropout 1.0", "below 1"]),
    (["--learning_rate", "nan"], ["--learning_rate nan"]),
    (["--max_grad_norm", "0"], ["--max_grad_norm 0"]),
    (["--sample", "--train_file", "x.json", "--eval_file", "y.json"], ["--sample", "--train_file"]),
    (["--train_file", "x.json"], ["--train_file", "--eval_file"]),
    (["--epochs", "2", "--max_steps", "5"], ["--max_steps", "--epochs"]),
    (["--lr_scheduler", "constant", "--warmup_steps", "5"], ["--warmup_steps", "constant"]),
    (["--run_name", "a/b"], ["--run_name", "--output_dir"]),
    (["--sample", "--warmup_steps", "9", "--max_steps", "8", "--model", "tiny"], ["--warmup_steps 9", "8 steps"]),
    (["--train_file", "no.json", "--eval_file", "no.json", "--model", "tiny"], ["no.json", "no such file"]),
    ([*SAMPLE, "--global_batch_size", "31"], ["--global_batch_size 31"]),
    ([*SAMPLE, "--micro_batch_size", "5"], ["--micro_batch_size 5"]),
    ([*SAMPLE, "--max_seq_length", "513"], ["--max_seq_length 513", "512"]),
    ([*SAMPLE, "--max_seq_length", "64", "--doc_stride", "60"], ["--doc_stride 60", "at most 59"]),
    (["--sample", "--model", "./nowhere"], ["./nowhere", "no such folder"]),
    (["--target_f1", "80", "--target_loss", "1"], ["--target_f1", "--target_loss"]),
    (["--target_f1", "101"], ["--target_f1 101", "at most 100"]),
    (["--target_loss", "-1"], ["--target_loss -1"]),
    (["--peak_tflops", "0"], ["--peak_tflops 0"]),
    ([*SAMPLE, "--max_steps", "8", "--profile_steps", "5"], ["--profile_steps 5", "8 steps", "at most 4"]),
    (["--measure", "throughput", "--profile_steps", "2"], ["--profile_steps", "--measure throughput"]),
])
def test_wrong_flags_get_one_line(flags, words):
    line = refusal(flags, kind=Arguments)
    assert all(word in line for word in words), line
    assert "\n" not in line


@pytest.mark.parametrize("flags, words", [
    ([*SAMPLE, "--stages", "3"], ["--stages 3", "2 devices"]),
    ([*SAMPLE, "--stages", "8"], ["--stages 8", "use at most 4"]),
    ([*SAMPLE, "--micro_batches", "7"], ["--micro_batches 7"]),
    ([*SAMPLE, "--micro_batches", "4", "--micro_batch_size", "3"], ["--micro_batch_size 3", "--micro_batches 4"]),
    ([*SAMPLE, "--deepspeed_config", "no.json"], ["--deepspeed_config no.json"]),
])
def test_wrong_pipelines_get_one_line(flags, words):
    line = refusal(flags, devices=8 if "8" in flags else 2)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("words, given", [
    (["--train-file", "a", "--eval_file=b"], {"train_file": "a", "eval_file": "b"}),
    (["--micro-batch-size=4", "--seed", "0"], {"micro_batch_size": 4, "seed": 0}),  # also the default's own value
    (["--no-length-grouping"], {"length_grouping": False}), (["--no_length_grouping"], {"length_grouping": False}),
    (["--run-name=--sample"], {"run_name": "--sample"}),
    (["--resume", "--sample"], {"resume": "always", "sample": True}),
    (["--sample", "false", "--train_file", "a", "--eval_file", "b"],
     {"sample": False, "train_file": "a", "eval_file": "b"}),
    (["--resume", "never", "--overwrite"], {"resume": "never", "overwrite": True}),
])
def test_a_flag_is_given_however_it_is_written(words, given):
    arguments = parse_arguments(Arguments, words)
    assert {name: getattr(arguments, name) for name in arguments.given} == given


@pytest.mark.parametrize("words", [
    ["--sample", "--train-file=x"], ["--max-steps", "5", "--epochs", "5"], ["--task", "imdb", "--doc-stride", "0"],
    ["--sample", "--train-file", "a", "--eval-file", "b"], ["--no_answerable_only"], ["--run_name", "--sample"],
    ["--measure=throughput", "--noise-scale-steps=16"], ["--overwrite", "--resume=auto"],
])
def test_flags_are_checked_however_they_are_written(words):
    with pytest.raises(InputError):
        parse_arguments(Arguments, words)


def test_defaults_never_contradict_a_given_flag():
    """The default stride of 128 does not fit in a window of 64, so it gives way."""
    from workload.tasks.squad_v2 import SquadV2
    task = SquadV2(parse_arguments(Arguments, [*SAMPLE, "--max_seq_length", "64"]))
    assert (task.max_length, task.stride) == (64, 21)
    task = SquadV2(parse_arguments(Arguments, SAMPLE))
    assert (task.max_length, task.stride) == (384, 128)


@pytest.mark.parametrize("steps, flags, expected", [
    (300, [], 30), (10_000, [], 500), (5, [], 0), (100, ["--warmup_steps", "7"], 7),
    (100, ["--lr_scheduler", "constant"], 0),
])
def test_warmup(steps, flags, expected):
    import torch
    arguments = parse_arguments(Arguments, ["--learning_rate", "0.5", *flags])
    assert warmup_steps(arguments, steps) == expected
    schedule = build_lr_schedule(build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], arguments), arguments, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.5)
    assert rates.index(max(rates)) == expected
    assert (rates[-1] < 0.5) == (arguments.lr_scheduler == "linear")


def test_decay_leaves_out_biases_and_layer_norms():
    from workload.tasks.squad_v2 import SquadV2
    arguments = parse_arguments(Arguments, SAMPLE)
    model = SquadV2(arguments).build_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]]
                       for group in build_optimizer(model.parameters(), arguments).param_groups)
    assert len(decayed) + len(spared) == len(names)
    assert not [name for name in decayed if name.endswith("bias") or "LayerNorm" in name]
    assert not [name for name in spared if not (name.endswith("bias") or "LayerNorm" in name)]


@pytest.mark.parametrize("flags, words", [
    (["--stage", "4"], ["--stage", "4", "3"]),
    (["--stage", "0", "--offload"], ["--offload", "--stage 0", "--stage 1"]),
    (["--offload", "--precision", "bf16_native"], ["--offload", "--precision bf16"]),
    (["--compile", "--stage", "3"], ["--compile", "--stage 3", "--stage 2"]),
    (["--stage", "3", "--secondary_shard_group", "1"], ["--secondary_shard_group 1", "at least 2"]),
    (["--stage", "3", "--offload", "--secondary_shard_group", "2"], ["--secondary_shard_group", "--offload"]),
])
def test_wrong_zero_flags_get_one_line(flags, words):
    line = refusal([*SAMPLE, *flags], kind=ZeroArguments)
    assert all(word in line for word in words) and "\n" not in line, line


@pytest.mark.parametrize("size, devices, words", [
    (3, 4, ["--shard_group 3", "4 devices", "use 2 or 4"]), (8, 4, ["groups of 8", "use 2 or 4"]),
    (2, 1, ["1 device cannot", "leave it out"]), (2, 3, ["use 3"])])
def test_groups_that_do_not_fit_get_one_line(size, devices, words):
    with pytest.raises(InputError) as caught:
        group_size("shard_group", size, devices)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value
    assert group_size("shard_group", None, devices) == group_size("shard_group", devices, devices) == devices
    zero = parse_arguments(ZeroArguments, [*SAMPLE, "--stage", "2", "--secondary_shard_group", "2"])
    with pytest.raises(InputError, match="--secondary_shard_group: in stage 2 .* use --stage 3"):
        check_second_copy(zero, devices)
    assert "--shard_group 1: must be at least 2" in refusal([*SAMPLE, "--shard_group", "1"], kind=FsdpArguments)


def test_speed_that_would_be_ignored_or_wrong_is_refused(monkeypatch):
    import torch

    import data_parallel
    from workload.precision import choose_precision
    with pytest.raises(InputError, match="--tf32: a CPU has no TF32"):
        choose_precision(None, True, torch.device("cpu"))
    assert "use --precision fp32" in refusal(["--tf32", "--precision", "bf16"])
    monkeypatch.setattr(sys, "argv", ["data_parallel.py", "--sample", "--model", "tiny", "--compile"])
    with pytest.raises(InputError, match="--compile would be wrong with DataParallel"):
        data_parallel.main()


# ---------------------------------------------------------------------- real processes

def deepspeeds_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))


@pytest.mark.parametrize("command", [
    ("deepspeed", "--num_gpus", "2", "pipeline.py"),
    ("deepspeed", "pipeline.py", "--num_gpus", "2"),  # the flag reaches the script, which starts what it asks for
    ("torchrun", "--nproc-per-node", "2", "zero.py"),
    ("torchrun", "bert_baseline.py"),
    ("torchrun", "bert_baseline.py", "--num_gpus", "2"),
    ("torchrun", "--nproc-per-node", "2", "bert_baseline.py", "--num_gpus", "1"),
    (sys.executable, "pipeline.py", "--num_gpus", "2"),
])
def test_every_way_of_starting(command, train):
    run = train(*command)
    is_one = command == ("torchrun", "bert_baseline.py") or command[-2:] == ("--num_gpus", "1")
    assert run.summary["devices"] == ("1" if is_one else "2")
    assert run.description["status"] == "finished"
    assert len(run.rows("steps.csv")) == 8
    assert command[0] != sys.executable or not stray_lines(run.output)  # launchers tell of themselves
    left = deepspeeds_memory()
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:  # what begins beside us has its names for a moment
        time.sleep(0.2)
        left &= deepspeeds_memory()
    assert not left, "DeepSpeed's memory outlives its processes"


def assert_one_line_about_bad_data(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "bad.json" in line and "data[0].paragraphs" in line


@pytest.fixture
def bad_data(tmp_path) -> list[str]:
    (tmp_path / "bad.json").write_text('{"data": [{"paragraphs": 3}]}')
    return ["--train_file", tmp_path / "bad.json", "--eval_file", tmp_path / "bad.json", "--model", "tiny",
            "--output_dir", tmp_path / "out"]


@pytest.mark.parametrize("command", [
    [sys.executable, "bert_baseline.py", "--num_gpus", "2"], ["deepspeed", "--num_gpus", "2", "pipeline.py"]])
def test_an_error_is_one_line_and_exit_code_2(command, bad_data, start, environment, monkeypatch, tmp_path):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setitem(environment, "TMPDIR", str(tmp_path / "temporary"))
    done = start(*command, *bad_data)
    assert_one_line_about_bad_data(done)
    if command[0] == sys.executable:
        assert done.stdout == "" and done.stderr.count("\n") == 1
        assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script, flags, count", [
    ("torch_pipeline.py", ["--schedule", "zbv"], 2), ("zero.py", ["--stage", "3"], 2), ("hf_trainer.py", [], 2),
    ("fsdp.py", [], 2), ("tensor_parallel.py", [], 2), ("data_parallel.py", [], 1)])
def test_an_error_is_one_line_from_every_script(script, flags, count, bad_data, start_ranks, tmp_path):
    done = start_ranks(script, "--num_gpus", count, *flags, *bad_data, count=count)
    assert_one_line_about_bad_data(done)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def assert_data_parallel_refuses_cpus(done: subprocess.CompletedProcess, output_dir: Path) -> None:
    assert done.returncode != 0 and not output_dir.exists()
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "0 GPUs" in line and "use --num_gpus 1" in line


def test_data_parallel_takes_no_cpus_for_gpus(start, start_ranks, tmp_path, monkeypatch, environment):
    monkeypatch.setitem(environment, "CUDA_VISIBLE_DEVICES", "")
    words = ["data_parallel.py", *SAMPLE, "--output_dir", tmp_path / "out"]
    assert_data_parallel_refuses_cpus(start_ranks(*words, "--num_gpus", "2"), tmp_path / "out")
    assert_data_parallel_refuses_cpus(start("torchrun", "--nproc-per-node", "2", *words), tmp_path / "out")


@pytest.mark.parametrize("flags, words", [
    (["--sample", "--model", "nobody/nothing"], ["nobody/nothing", "Hub", "local folder"]),
    (["--sample", "--model", "data"], ["data", "config.json"]),
    (["--model", "tiny"], ["rajpurkar/squad_v2", "Hub", "--sample"]),
    (["--sample", "--model", "gpt"], ["gpt2", "bert"]),
])
def test_a_model_or_data_set_that_is_not_there(flags, words, start_ranks, tmp_path):
    if flags[-1] == "gpt":
        (tmp_path / "gpt").mkdir()
        (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
        flags = [*flags[:-1], str(tmp_path / "gpt")]
    done = start_ranks("bert_baseline.py", *flags, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "out").exists()


def test_evaluation_text_shorter_than_one_sample_is_refused(start_ranks, tmp_path):
    (tmp_path / "short.txt").write_text("Short.")
    files = ["--train_file", "data/oscar/eval.jsonl", "--eval_file", tmp_path / "short.txt"]
    done = start_ranks("bert_baseline.py", "--task", "oscar", "--model", "tiny", *files,
                       "--output_dir", tmp_path / "out", count=2)
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "short.txt: holds less than one sample" in line


def test_a_run_folder_that_exists_is_kept_unless_told(start_ranks, tmp_path):
    command = ["bert_baseline.py", *EXACT, "--max_steps", "1", "--output_dir", tmp_path]
    assert start_ranks(*command, "--run_name", "taken").returncode == 0
    before = (tmp_path / "taken" / "run.json").read_text()
    done = start_ranks(*command, "--run_name", "taken")
    assert done.returncode == 2 and "--overwrite" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "taken" / "run.json").read_text() == before
    assert start_ranks(*command, "--run_name", "taken", "--overwrite").returncode == 0
    assert (tmp_path / "taken" / "run.json").read_text() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = start_ranks(*command, "--run_name", "mine", "--overwrite")
    assert done.returncode == 2 and (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_help_has_the_scripts_own_flags_first_then_groups_then_examples():
    done = subprocess.run([sys.executable, "-m", "zero", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    titles = [line.rstrip(":") for line in done.stdout.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["options", "strategy", "task", "data", "model", "batch", "optimizer", "precision", "devices",
                      "measuring", "output", "examples"]
    strategy = done.stdout.split("\nstrategy:")[1].split("\ntask:")[0]
    assert "--stage" in strategy and "--offload" in strategy and "--learning_rate" not in strategy
    assert "python zero.py --num_gpus 4 --stage 3" in done.stdout.split("\nexamples:")[1]
    assert "default: None" not in done.stdout
    assert re.search(r"--no_length_grouping.*\n? +the same as --length_grouping false\n", done.stdout)


def test_every_flag_is_in_one_group():
    for kind in (Arguments, ZeroArguments, PipelineArguments, FsdpArguments):
        names = [each.name for group in grouped(kind, Arguments) for each in dataclasses.fields(group)]
        assert sorted(names) == sorted(each.name for each in dataclasses.fields(kind))

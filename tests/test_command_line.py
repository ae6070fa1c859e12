"""Flags and ways of starting: what works, and the one line that a wrong input gets."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_trainer import zero_stage
from tests.conftest import EXACT, stray_lines
from workload.arguments import Arguments, PipelineArguments, TrainerArguments, ZeroArguments, parse_arguments
from workload.batches import plan_stages
from workload.deepspeed_config import complete_config, follow_config, read_deepspeed_config
from workload.errors import InputError
from workload.job import prepare
from workload.optimizer import build_optimizer, build_schedule, warmup_steps

SAMPLE = ["--sample", "--model", "tiny"]


def refusal(flags: list[str], devices: int = 2, kind=PipelineArguments) -> str:
    """The line that these flags get before anything is started."""
    with pytest.raises(InputError) as caught:
        arguments = parse_arguments(kind, flags)
        stages, micro_batches = 1, None
        if kind is PipelineArguments:
            stages, micro_batches = plan_stages(arguments.stages, arguments.micro_batches,
                                                arguments.global_batch_size, devices)
            read_deepspeed_config(arguments.deepspeed_config)
        prepare("pipeline", arguments, devices, stages, micro_batches)
        raise AssertionError("was not refused")
    return str(caught.value)


@pytest.mark.parametrize("flags, words", [
    (["--learnin_rate", "1"], ["--learnin_rate", "did you mean --learning_rate"]),
    (["--learning", "1"], ["unknown flag --learning"]),  # abbreviated
    (["--lr=1"], ["unknown flag --lr"]),
    (["positional"], ["unknown flag positional"]),
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
    ([*SAMPLE, "--stages", "8"], ["--stages 8", "at most 4 fits"]),
    ([*SAMPLE, "--micro_batches", "7"], ["--micro_batches 7"]),
    ([*SAMPLE, "--micro_batches", "4", "--micro_batch_size", "3"], ["--micro_batch_size 3", "--micro_batches 4"]),
    ([*SAMPLE, "--deepspeed_config", "no.json"], ["--deepspeed_config no.json"]),
])
def test_wrong_pipelines_get_one_line(flags, words):
    line = refusal(flags, devices=8 if "8" in flags else 2)
    assert all(word in line for word in words), line


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
    schedule = build_schedule(build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], arguments), arguments, steps)
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


@pytest.mark.parametrize("content, words", [
    ("{", ["not JSON"]), ("[]", ["object"]),
    ('{"train_batch_size": 7}', ["train_batch_size is 7", "--global_batch_size says 64"]),
    ('{"gradient_clipping": 5}', ["gradient_clipping is 5", "--max_grad_norm"]),
    ('{"gradient_accumulation_steps": 3}', ["gradient_accumulation_steps is 3"]),
    ('{"optimizer": {"type": "Adam", "params": {}}}', ["optimizer.type is Adam"]),
    ('{"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}', ["optimizer.params.lr is 0.1", "--learning_rate"]),
    ('{"scheduler": {"type": "WarmupLR"}}', ["scheduler", "--lr_scheduler"]),
    ('{"bf16": {"enabled": true}}', ["bf16.enabled", "--precision"]),
    ('{"zero_optimization": {"stage": 2}}', ["zero_optimization.stage is 2", "zero.py --stage"]),
    ('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}', ["offload_optimizer", "--offload"]),
])
def test_a_deepspeed_config_that_contradicts_the_flags_is_refused(content, words, tmp_path):
    from workload.batches import Split
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        config = read_deepspeed_config(str(path))
        complete_config(config, parse_arguments(PipelineArguments, []), Split(1, 8, 8), "fp32")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_deepspeed_config_that_agrees_is_taken_as_it_stands():
    from workload.batches import Split
    config = {"train_batch_size": 64, "gradient_clipping": "auto", "wall_clock_breakdown": True,
              "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}, "bf16": {"enabled": False}}
    completed = complete_config(config, parse_arguments(PipelineArguments, []), Split(1, 8, 8), "bf16")
    assert completed["wall_clock_breakdown"] is True and "optimizer" not in completed
    assert completed["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def test_zero_is_set_by_flags_and_tuned_by_the_file():
    from workload.batches import Split
    arguments = parse_arguments(ZeroArguments, ["--stage", "3", "--offload"])
    config = {"zero_optimization": {"stage": 3, "overlap_comm": False, "offload_optimizer": {"pin_memory": False}}}
    completed = complete_config(config, arguments, Split(2, 4, 8), "fp32", arguments.stage, arguments.offload)
    assert completed["zero_optimization"] == {"stage": 3, "overlap_comm": False,
                                              "offload_optimizer": {"pin_memory": False, "device": "cpu"}}
    assert completed["gradient_clipping"] == 1.0
    with pytest.raises(InputError, match="offload_optimizer"):
        complete_config(config, arguments, Split(2, 4, 8), "fp32", arguments.stage, offload=False)


def test_flags_left_open_follow_the_file():
    config = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 2}
    for flags, expected in (([], (3, 2)), (["--stage", "1"], (1, 2)), (["--micro_batch_size", "8"], (3, 8))):
        arguments = parse_arguments(ZeroArguments, flags)
        follow_config(config, arguments, devices=2)
        assert (arguments.stage, arguments.micro_batch_size, arguments.global_batch_size) == (*expected, 64)
    with pytest.raises(InputError, match="stage is 4"):
        follow_config({"zero_optimization": {"stage": 4}}, arguments, devices=2)


@pytest.mark.parametrize("flags, words", [
    (["--stage", "4"], ["--stage", "4", "3"]),
    (["--stage", "0", "--offload"], ["--offload", "--stage 0", "--stage 1"]),
    (["--offload", "--precision", "bf16_native"], ["--offload", "--precision bf16"]),
    (["--compile", "--stage", "3"], ["--compile", "--stage 3", "--stage 2"]),
])
def test_wrong_zero_flags_get_one_line(flags, words):
    line = refusal([*SAMPLE, *flags], kind=ZeroArguments)
    assert all(word in line for word in words) and "\n" not in line, line


def test_speed_that_would_be_ignored_or_wrong_is_refused(monkeypatch):
    import torch

    import data_parallel
    from workload.optimizer import choose_precision
    with pytest.raises(InputError, match="--tf32: a CPU has no TF32"):
        choose_precision(None, True, torch.device("cpu"))
    assert "--precision fp32 fits" in refusal(["--tf32", "--precision", "bf16"])
    monkeypatch.setattr(sys, "argv", ["data_parallel.py", "--sample", "--model", "tiny", "--compile"])
    with pytest.raises(InputError, match="--compile would be wrong with DataParallel"):
        data_parallel.main()


@pytest.mark.parametrize("content, flags, words", [
    ("{}", [], ["zero_optimization.stage is None", "1, 2 or 3 fits"]),
    ('{"zero_optimization": {"stage": 0}}', [], ["zero_optimization.stage is 0", "DDP"]),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', [], ["offload_optimizer"]),
    ('{"zero_optimization": {"stage": 2}}', ["--precision", "bf16_native"], ["bf16_native", "bf16 fits"]),
    ('{"zero_optimization": {"stage": 3}}', ["--compile"], ["stage 3", "--compile", "stage 2 fits"]),
])
def test_a_deepspeed_config_that_the_trainer_cannot_follow_is_refused(content, flags, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    arguments = parse_arguments(TrainerArguments, ["--deepspeed_config", str(path), *flags])
    with pytest.raises(InputError) as caught:
        zero_stage(read_deepspeed_config(arguments.deepspeed_config), arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
    ("fsdp.py", [], 2), ("data_parallel.py", [], 1)])
def test_an_error_is_one_line_from_every_script(script, flags, count, bad_data, start_ranks, tmp_path):
    done = start_ranks(script, "--num_gpus", count, *flags, *bad_data, count=count)
    assert_one_line_about_bad_data(done)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def assert_data_parallel_refuses_cpus(done: subprocess.CompletedProcess, output_dir: Path) -> None:
    assert done.returncode != 0 and not output_dir.exists()
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "0 GPUs" in line and "--num_gpus 1 fits" in line


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

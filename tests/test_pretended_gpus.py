"""Every strategy on pretended GPUs (tests/pretended_cuda) runs its branches for CUDA and computes what a CPU does.

Copies to the host arrive late: a value that is read too early is NaN. An operation that mixes devices fails.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared.runs import (
    ONE_PROCESS,
    OTHER_TASKS,
    ROOT,
    SHORT,
    assert_same_computation,
    relative,
    stray_lines,
    weight_difference,
)

STRATEGIES = {
    "DDP": ("bert_baseline.py",),
    "DataParallel": ("data_parallel.py",),
    "ZeRO-0": ("zero.py", "--stage", "0"),
    "ZeRO-1": ("zero.py", "--stage", "1"),
    "ZeRO-1 offload": ("zero.py", "--stage", "1", "--offload"),
    "ZeRO-2": ("zero.py", "--stage", "2"),
    "ZeRO-3": ("zero.py", "--stage", "3"),
    "ZeRO-3 offload": ("zero.py", "--stage", "3", "--offload"),
    "FSDP": ("fsdp.py",),
    "FSDP no reshard": ("fsdp.py", "--reshard_after_forward", "false"),
    "tensor": ("tensor_parallel.py",),
    "tensor sequence": ("tensor_parallel.py", "--sequence_parallel"),
    "pipeline": ("pipeline.py", "--micro_batches", "8"),
    "torch 1f1b": ("torch_pipeline.py", "--micro_batches", "8", "--schedule", "1f1b"),
    "torch gpipe": ("torch_pipeline.py", "--micro_batches", "8", "--schedule", "gpipe"),
    "torch interleaved": ("torch_pipeline.py", "--micro_batches", "8", "--schedule", "interleaved"),
    "torch zero_bubble": ("torch_pipeline.py", "--micro_batches", "8", "--schedule", "zero_bubble"),
    "torch zbv": ("torch_pipeline.py", "--micro_batches", "8", "--schedule", "zbv"),
    "HF Trainer": ("hf_trainer.py",),
    "HF Trainer ZeRO-2": ("hf_trainer.py", "--deepspeed_config", "experiments/zero2.json"),
    "DataParallel recompute": ("data_parallel.py", "--activation_checkpointing"),
    "ZeRO-3 recompute": ("zero.py", "--stage", "3", "--activation_checkpointing"),
    "pipeline recompute": ("pipeline.py", "--micro_batches", "8", "--activation_checkpointing"),
}
ROWS = [("DDP", 1), *((name, 2) for name in STRATEGIES)]  # all on one GPU: test_on_gpu.py, by verify.py
GROUPS = {"FSDP hybrid": ("fsdp.py", "--shard_group", "2"),
          "ZeRO-3 hpZ": ("zero.py", "--stage", "3", "--secondary_shard_group", "2")}
ROWS += [("FSDP hybrid", 4), ("ZeRO-3 hpZ", 2)]
LIBRARIES = ("deepspeed/", "accelerate/", "transformers/trainer")  # wait by themselves, as docs/strategies.md has it


# What a step gives the first of 2 GPUs to do: 4 micro-batches a replica, 8 through a pipeline, the noise scale sampled.
# Beyond DDP's is what an engine issues by itself; benchmarks/README.md has BERT-base's counts by name.
OPERATIONS = {
    "DDP": 1443, "ZeRO-0": 1445, "ZeRO-1": 1632, "ZeRO-1 offload": 1962, "ZeRO-2": 1860, "ZeRO-3": 2327,
    "ZeRO-3 offload": 3134, "FSDP": 1955, "FSDP no reshard": 1455, "pipeline": 1397, "torch 1f1b": 1352,
    "torch gpipe": 1352, "torch interleaved": 1352, "torch zero_bubble": 1368, "torch zbv": 1646, "HF Trainer": 1531,
    "HF Trainer ZeRO-2": 1870, "DataParallel": 6639}


def command_of(name: str, gpus: int) -> tuple[str, ...]:
    """A strategy's command. DataParallel's forward pass takes the samples of all GPUs: half a micro-batch for each."""
    is_halved = name.startswith("DataParallel") and gpus == 2
    return (*(STRATEGIES | GROUPS)[name], *(["--micro_batch_size", "2"] if is_halved else []))


def our_waits(run, at_least: float = 0) -> list[str]:
    """This project's lines that made a host wait in measured steps, `at_least` so often a step."""
    ranks = run.device_counts()
    assert ranks
    return [f"{wait['line']}: {wait['what']}" for rank in ranks for wait in rank["waits"]
            if not wait["line"].startswith(LIBRARIES) and wait["per_step"] >= at_least]


def assert_as_one_process(run, one, gpus: int) -> None:
    assert_same_computation(run, one)
    for norms in ("micro_batch_squared_norm", "batch_squared_norm"):
        assert relative(run.column(norms), one.column(norms)) < 2e-4
    devices = [device["device"] for rank in run.description["ranks"] for device in rank["devices"]]
    assert devices == [f"cuda:{number}" for number in range(gpus)]
    assert not stray_lines(run.output)


DEVICE = """
import json, torch
from tests import pretended_cuda
pretended_cuda.start()
from tests.pretended_cuda.build import NAME
import sys
device, waits = sys.modules[NAME], []
device.on_wait(waits.append)

def seen(function, *arguments):
    del waits[:]
    try:
        function(*arguments)
    except RuntimeError as error:
        return str(error)
    return list(waits)

gpu, other, host = torch.arange(6.0, device="cuda:0"), torch.ones(6, device="cuda:1"), torch.ones(6)
pinned, event = torch.ones(6, pin_memory=True), torch.cuda.Event()
indices = torch.tensor([0, 2], device="cuda:0")
def issued(function):
    before = device.operations()
    function()
    return sum(calls for calls, _ in device.operations().values()) - sum(calls for calls, _ in before.values())

parameters = [torch.ones(4, device="cuda:0", requires_grad=True) for _ in range(200)]
for parameter in parameters:
    parameter.grad = torch.ones_like(parameter)
counts = {}
for kind in ("foreach", "fused"):
    optimizer = torch.optim.AdamW(parameters, **{kind: True})
    optimizer.step()
    counts[kind] = issued(optimizer.step)
query = torch.ones(1, 2, 3, 4, device="cuda:0")
counts["attention"] = issued(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
counts["a view"] = issued(lambda: query.transpose(1, 2)[:, 1:].unsqueeze(0))
counts["a cast"] = issued(lambda: query.to(torch.bfloat16))
answers = {name: seen(*call) for name, call in {
    "sum": (gpu.sum,), "view": (gpu.view(2, 3).t().contiguous,), "index": (lambda: gpu[indices],),
    "item": (gpu.sum().item,), "bool": (lambda: bool((gpu > 1).all()),), "to the host": (gpu.cpu,),
    "mask as index": (lambda: gpu[gpu > 1],), "nonzero": (gpu.nonzero,), "unique": (gpu.unique,),
    "from the host": (host.to, "cuda:0"), "from pinned memory": (lambda: pinned.to("cuda:0", non_blocking=True),),
    "synchronize": (torch.cuda.synchronize,), "event": (event.synchronize,),
    "two gpus": (lambda: gpu + other,), "gpu and host": (lambda: gpu * host,)}.items()}
early = torch.empty(6, pin_memory=True).copy_(gpu, non_blocking=True)
answers["before it arrives"] = early.isnan().all().item()
event.record()
answers["a query is no wait"] = seen(event.query)
answers["behind it"] = early.tolist()
gpu.add_(1)
late = torch.empty(6, pin_memory=True).copy_(gpu, non_blocking=True)
event.query()
answers["recorded before the copy"] = late.isnan().all().item()
torch.cuda.synchronize()
answers["after all"] = late.tolist()
before = torch.cuda.memory_allocated(1)
kept = torch.empty(2**20, device="cuda:1")
answers["bytes"] = torch.cuda.memory_allocated(1) - before
torch.cuda.manual_seed_all(3)
state = torch.cuda.get_rng_state(0)
first = torch.rand(4, device="cuda:0"), torch.rand(4)
torch.cuda.set_rng_state(state, 0)
answers["random"] = torch.equal(torch.rand(4, device="cuda:0").cpu(), first[0].cpu())
with torch.autocast("cuda", dtype=torch.bfloat16):
    answers["autocast"] = str((torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype)
print(json.dumps(answers | {"counts": counts}))
"""


def test_a_pretended_gpu_behaves_as_one(pretended_cuda, environment):
    done = subprocess.run([sys.executable, "-c", DEVICE], cwd=ROOT, env=environment | {"PRETENDED_GPUS": "2"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers = json.loads(done.stdout)
    assert answers.pop("counts") == {"foreach": 8, "fused": 2, "attention": 1, "a view": 0, "a cast": 1}
    waits = {name: answers.pop(name) for name in list(answers) if isinstance(answers[name], list) and all(
        isinstance(each, str) for each in answers[name])}
    assert {name for name, seen in waits.items() if not seen} == {
        "sum", "view", "index", "from pinned memory", "a query is no wait"}
    assert all(len(seen) == 1 for seen in waits.values() if seen), waits
    for name in ("two gpus", "gpu and host"):
        assert "Expected all tensors to be on the same device" in answers.pop(name)
    assert answers == {"before it arrives": True, "behind it": [0, 1, 2, 3, 4, 5], "recorded before the copy": True,
                       "after all": [1, 2, 3, 4, 5, 6], "bytes": 4 * 2**20, "random": True,
                       "autocast": "torch.bfloat16"}


def test_ddp_on_a_gpu(pretended_cuda, train):
    run = pretended_cuda(1, *command_of("DDP", 1))
    assert_as_one_process(run, train(*ONE_PROCESS), 1)
    assert not our_waits(run)


def test_data_parallel_is_one_process_with_several_gpus(pretended_cuda, train):
    run = pretended_cuda(2, *command_of("DataParallel", 2))
    assert_as_one_process(run, train(*ONE_PROCESS), 2)
    assert not our_waits(run)
    shape = [run.summary[name] for name in ("devices", "replicas", "micro_batches", "micro_batch_size")]
    assert shape == ["2", "2", "8", "2"] and run.summary["global_batch_size"] == "32"
    assert run.rows("ranks.csv")[0]["device"] == "cuda:0 + cuda:1"
    assert not stray_lines(run.output)


@pytest.mark.parametrize("name, gpus", ROWS)
def test_strategy_computes_what_one_process_computes(name, gpus, pretended_gpus, train):
    run = pretended_gpus(gpus, *command_of(name, gpus))
    assert_as_one_process(run, train(*ONE_PROCESS), gpus)
    assert not our_waits(run)
    empty = {column for column, value in run.summary.items() if value == ""}
    assert empty == set(run.description["empty"]) and "unknown" not in run.description["empty"].values()
    assert float(run.summary["peak_memory_gib"]) > 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_step_gives_the_device_no_more_to_do_than_it_did(name, pretended_gpus):
    operations = pretended_gpus(2, *command_of(name, 2)).device_counts()[0]["operations"]
    computed = sum(each["per_step"] for what, each in operations.items() if not what.startswith("c10d::"))
    assert computed <= OPERATIONS[name], operations


@pytest.mark.parametrize("task, name", [
    ("imdb", "DDP"), ("imdb", "ZeRO-3"), ("imdb", "pipeline"), ("imdb", "tensor sequence"), ("mnli", "FSDP"),
    ("mnli", "torch zbv"), *(("oscar", name) for name in ("DDP", "ZeRO-3", "FSDP", "pipeline", "torch zero_bubble",
                                                          "tensor sequence", "DataParallel"))])
def test_other_tasks(task, name, pretended_gpus, train):
    flags = ("--task", task, "--max_steps", "3", *OTHER_TASKS[task])
    run = pretended_gpus(2, *command_of(name, 2), *flags)
    assert_as_one_process(run, train(*ONE_PROCESS, *flags), 2)
    # So few steps are all measured, and PyTorch waits once at first: for DDP's buckets, and for a schedule's stages.
    assert not [line for line in our_waits(run, at_least=1) if not line.startswith("torch_pipeline.py")]


@pytest.mark.parametrize("precision, name", [
    ("bf16", "DDP"), ("fp16", "DDP"), ("fp16", "DataParallel"), ("bf16", "ZeRO-1"), ("fp16", "ZeRO-2"),
    ("bf16", "ZeRO-3"), ("fp16", "FSDP"), ("bf16", "FSDP"), ("fp16", "pipeline"), ("fp16", "torch zbv"),
    ("bf16", "torch 1f1b"), ("fp16", "HF Trainer")])
def test_precision_means_the_same_arithmetic(precision, name, pretended_gpus, train):
    """Compared with one GPU: autocast chooses other operations for the short type on a CPU."""
    flags = (*SHORT, "--max_steps", "4", "--precision", precision)
    one, run = (pretended_gpus(gpus, *command_of(which, gpus), *flags) for which, gpus in (("DDP", 1), (name, 2)))
    losses = [each.column("train_loss") for each in (run, one, train(*ONE_PROCESS, *SHORT, "--max_steps", "4"))]
    assert relative(losses[0], losses[1]) < 1e-3 and relative(losses[0], losses[2]) < 1e-2
    assert abs(losses[0][0] - losses[1][0]) < 1e-6 < 1e-5 < abs(losses[1][0] - losses[2][0])
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 3e-3
    assert not our_waits(run, at_least=1)


@pytest.mark.parametrize("name", ["DDP", "FSDP", "ZeRO-2", "pipeline", "torch zbv", "tensor"])
def test_a_resumed_run_is_the_uninterrupted_one(name, pretended_gpus, tmp_path, broken_off, resume):
    """With dropout, which resumes with the random numbers of each GPU."""
    command = (*command_of(name, 2), "--dropout", "0.1")
    whole = pretended_gpus(2, *command)
    run = resume(broken_off(whole), *command, pretended_gpus=2)
    for column in ("train_loss", "grad_norm", "learning_rate"):
        assert run.column(column) == whole.column(column)
    assert weight_difference(run, whole) == 0
    assert [attempt["from_step"] for attempt in run.description["attempts"]] == [0, 6]


@pytest.mark.parametrize("name", ["DDP", "pipeline"])
def test_profiling_traces_the_host_and_leaves_the_rest_empty(name, pretended_gpus):
    run = pretended_gpus(2, *command_of(name, 2), "--profile_steps", "2", "--max_eval_examples", "8")
    assert len(list((run.folder / "profile").glob("rank*.json.gz"))) == 2
    assert float(run.summary["host_cpu_s_per_step"]) > 0
    assert run.summary["device_s_per_step"] == "" and "CUPTI" in run.description["empty"]["device_s_per_step"]


def waits_in_the_table() -> dict[str, dict[str, float]]:
    """The table in docs/strategies.md: strategy -> function -> waits a step."""
    text = Path(ROOT, "docs", "strategies.md").read_text()
    table = text[text.index("## What makes the host wait"):].split("\n## ")[0]
    waits: dict[str, dict[str, float]] = {}
    for names, count, function in re.findall(r"^\| ([^|]+) \| ([\d.]+)[^|]* \| `([^`]+)`", table, re.MULTILINE):
        for name in names.split(", "):
            waits.setdefault(name, {})[function] = float(count)
    return waits


@pytest.mark.parametrize("name", [name for name in (*STRATEGIES, "ZeRO-3 hpZ")
                                  if name.startswith(("ZeRO", "pipeline", "HF"))])
def test_what_libraries_wait_for_is_in_the_table(name, pretended_gpus):
    """Only waits in every step count, not those at a run's end."""
    found: dict[str, float] = {}
    for wait in pretended_gpus(2, *command_of(name, 2)).device_counts()[0]["waits"]:
        if wait["per_step"] >= 1:
            function = wait["line"].rpartition(":")[2]
            found[function] = found.get(function, 0) + round(wait["per_step"], 3)
    assert found == waits_in_the_table().get(name, {})

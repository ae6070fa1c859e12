"""Real runs of the scripts: the commands that the tests share, what a run leaves behind, and when two are the same.

Torch is imported where it is used, for conftest.py imports this module also in the controller of pytest-xdist.
"""

import csv
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ["--sample", "--model", "tiny"]
# A short job on which every clipping is active, batches differ in length, and nothing is random but the order.
EXACT = ["--sample", "--model", "tiny", "--max_seq_length", "128", "--max_steps", "8", "--global_batch_size", "32",
         "--micro_batch_size", "4", "--learning_rate", "3e-5", "--warmup_steps", "0", "--max_grad_norm", "3.0",
         "--dropout", "0", "--cpu_threads", "1", "--noise_scale_steps", "1", "--max_eval_examples", "50",
         "--precision", "fp32", "--save_model", "--checkpoint_steps", "3"]
ONE_PROCESS = ("bert_baseline.py", "--num_gpus", "1")
OTHER_TASKS = {  # with flags under which clipping is active in every step
    "imdb": ("--max_seq_length", "40", "--max_grad_norm", "2"), "mnli": ("--max_grad_norm", "1.2"),
    "oscar": ("--max_seq_length", "64", "--max_grad_norm", "3")}
ROWS = {
    "DDP x 2": ("bert_baseline.py", "--num_gpus", "2"),
    "pipeline x 1": ("pipeline.py", "--num_gpus", "1", "--stages", "1", "--micro_batches", "8"),
    "pipeline x 2": ("pipeline.py", "--num_gpus", "2", "--stages", "2"),
    "pipeline x 4": ("pipeline.py", "--num_gpus", "4", "--stages", "4", "--micro_batches", "8"),
    "pipeline 2 x 2": ("pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch 1f1b x 1": ("torch_pipeline.py", "--num_gpus", "1", "--stages", "1", "--micro_batches", "8"),
    "torch gpipe x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "gpipe"),
    "torch 1f1b x 4": ("torch_pipeline.py", "--num_gpus", "4", "--schedule", "1f1b", "--micro_batches", "8"),
    "torch 1f1b 2 x 2": ("torch_pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch interleaved x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "interleaved"),
    "torch zero_bubble x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zero_bubble"),
    "torch zbv x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zbv"),
    "ZeRO-3 x 1": ("zero.py", "--num_gpus", "1", "--stage", "3"),
    "ZeRO-0 x 2": ("zero.py", "--num_gpus", "2", "--stage", "0"),
    "ZeRO-1 x 2": ("zero.py", "--num_gpus", "2", "--stage", "1"),
    "ZeRO-2 x 2": ("zero.py", "--num_gpus", "2", "--stage", "2"),
    "ZeRO-3 x 2": ("zero.py", "--num_gpus", "2", "--stage", "3"),
    "ZeRO-3 x 4": ("zero.py", "--num_gpus", "4", "--stage", "3"),
    "ZeRO-3 x 2 offload": ("zero.py", "--num_gpus", "2", "--stage", "3", "--offload"),
    "ZeRO-3 hpZ x 2": ("zero.py", "--num_gpus", "2", "--stage", "3", "--secondary_shard_group", "2"),
    "ZeRO-3 hpZ 2 x 2": ("zero.py", "--num_gpus", "4", "--stage", "3", "--secondary_shard_group", "2"),
    "HF Trainer x 1": ("hf_trainer.py", "--num_gpus", "1"),
    "HF Trainer x 2": ("hf_trainer.py", "--num_gpus", "2"),
    "HF Trainer ZeRO-2 x 2": ("hf_trainer.py", "--num_gpus", "2", "--deepspeed_config", "experiments/zero2.json"),
    "FSDP x 2 compiled": ("fsdp.py", "--num_gpus", "2", "--compile"),
    "FSDP x 1": ("fsdp.py", "--num_gpus", "1"),
    "FSDP x 2": ("fsdp.py", "--num_gpus", "2"),
    "FSDP no reshard x 2": ("fsdp.py", "--num_gpus", "2", "--reshard_after_forward", "false"),
    "FSDP x 4": ("fsdp.py", "--num_gpus", "4"),
    "FSDP hybrid 2 x 2": ("fsdp.py", "--num_gpus", "4", "--shard_group", "2"),
    "FSDP no reshard hybrid 2 x 2": ("fsdp.py", "--num_gpus", "4", "--shard_group", "2", "--reshard_after_forward",
                                     "false"),
    "tensor x 1": ("tensor_parallel.py", "--num_gpus", "1"),
    "tensor x 2": ("tensor_parallel.py", "--num_gpus", "2"),
    "tensor sequence x 2": ("tensor_parallel.py", "--num_gpus", "2", "--sequence_parallel"),
    "tensor x 4": ("tensor_parallel.py", "--num_gpus", "4"),
    "tensor 2 x 2": ("tensor_parallel.py", "--num_gpus", "4", "--tensor_parallel", "2"),
    "tensor FSDP 2 x 2": ("tensor_parallel.py", "--num_gpus", "4", "--tensor_parallel", "2", "--shard_replicas"),
    "tensor sequence FSDP 2 x 2": ("tensor_parallel.py", "--num_gpus", "4", "--tensor_parallel", "2",
                                   "--sequence_parallel", "--shard_replicas"),
    "DataParallel x 1": ("data_parallel.py", "--num_gpus", "1"),
    "DDP recompute x 2": ("bert_baseline.py", "--num_gpus", "2", "--activation_checkpointing"),
    "pipeline recompute x 2": ("pipeline.py", "--num_gpus", "2", "--stages", "2", "--activation_checkpointing"),
    "torch interleaved recompute x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "interleaved",
                                        "--activation_checkpointing"),
    "ZeRO-3 recompute x 2": ("zero.py", "--num_gpus", "2", "--stage", "3", "--activation_checkpointing"),
    "FSDP recompute x 2": ("fsdp.py", "--num_gpus", "2", "--activation_checkpointing"),
    "HF Trainer recompute x 2": ("hf_trainer.py", "--num_gpus", "2", "--activation_checkpointing"),
}
SHORT = ("--max_steps", "2", "--max_eval_examples", "8")  # short types are slow on a CPU
PIPELINES = [row for row, command in ROWS.items() if "pipeline" in command[0] and "x 1" not in row]
PROFILED = ("--profile_steps", "2", "--eval_steps", "4", "--target_loss", "50", "--peak_tflops", "0.05")


def rows(*names: str) -> list:
    """Commands of ROWS, or of "one process", as parameters of a test; a command's processes decide about its lane."""
    return [pytest.param({"one process": ONE_PROCESS, **ROWS}[name], id=name) for name in names]


class FinishedRun:
    """What a run left behind."""

    def __init__(self, folder: Path, output: subprocess.CompletedProcess) -> None:
        self.folder, self.output = folder, output

    @property
    def description(self) -> dict:
        return json.loads((self.folder / "run.json").read_text())

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / name, newline="") as file:
            return list(csv.DictReader(file))

    def column(self, name: str) -> list[float]:
        """A column of steps.csv."""
        return [float(row[name]) for row in self.rows("steps.csv")]

    @property
    def summary(self) -> dict[str, str]:
        return self.rows("summary.csv")[0]

    def device_counts(self) -> list[dict]:
        """For each rank, the waits and operations of measured steps on pretended GPUs (pretended_cuda/counting.py)."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("device_counts/rank*.json"))]

    def weights(self) -> dict:
        from safetensors.torch import load_file

        return load_file(self.folder / "model" / "model.safetensors")


def stray_lines(output: subprocess.CompletedProcess) -> list[str]:
    """The lines that a run printed besides its bars and the closing line."""
    lines = output.stderr.replace("\x1b[A", "").replace("\r", "\n").splitlines() + output.stdout.splitlines()[:-1]
    return [line for line in lines if line.strip() and "%|" not in line and "examples/s" not in line]


def relative(value: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(value, expected, strict=True))


def differences(run, reference) -> dict:
    """As `verify.py` finds them."""
    from verification import compare

    return compare.differences(compare.Computation(run.folder), compare.Computation(reference.folder))


def weight_difference(run, reference) -> float:
    """The norm of the difference of all weights, divided by the norm of the reference's."""
    return differences(run, reference)["weights"].relative


def assert_same_computation(run, reference) -> None:
    limits = {"order of samples": 0, "loss": 1e-5, "gradient norm": 1e-4, "weights": 1e-5, "validation loss": 1e-5}
    found = differences(run, reference)
    assert not {quantity: found[quantity] for quantity, limit in limits.items() if found[quantity].exceeds(limit)}
    for column in ("samples", "real_tokens", "learning_rate"):
        assert run.column(column) == pytest.approx(reference.column(column), rel=1e-12), column

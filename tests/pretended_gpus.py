"""Not a test: `data_parallel.py` as it goes with several GPUs, on a CPU.

Replicas are PyTorch's own, without parameters of their own, and each runs in a thread of its own. What moves tensors
between GPUs (broadcast, scatter, gather) has a plain tensor operation in its place.
"""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import data_parallel  # noqa: E402
from workload.errors import one_line_errors  # noqa: E402

replication = importlib.import_module("torch.nn.parallel.replicate")  # the package has a function of that name


class PretendedDataParallel(torch.nn.Module):
    device_ids: tuple = ()  # of real GPUs

    def __init__(self, module: torch.nn.Module, device_ids: list[int]) -> None:
        super().__init__()
        self.module, self.count = module, len(device_ids)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = [dict(zip(inputs, tensors, strict=True))
                 for tensors in zip(*(tensor.chunk(self.count) for tensor in inputs.values()), strict=True)]
        replicas = replication.replicate(self.module, list(range(self.count)), not torch.is_grad_enabled())
        assert len(parts) == self.count and not list(replicas[0].parameters())
        with ThreadPoolExecutor(self.count) as threads:
            return torch.cat(list(threads.map(run_replica, replicas, parts, [torch.is_grad_enabled()] * self.count)))


def run_replica(replica: torch.nn.Module, inputs: dict[str, torch.Tensor], with_gradients: bool) -> torch.Tensor:
    with torch.set_grad_enabled(with_gradients):
        return replica(inputs)


def copies(tensors: list[torch.Tensor], devices: list[int], detach: bool = False) -> list[list[torch.Tensor]]:
    return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]


torch.nn.DataParallel = PretendedDataParallel
replication._broadcast_coalesced_reshape = copies
data_parallel.gpus_asked_for = lambda num_gpus: num_gpus

if __name__ == "__main__":
    with one_line_errors():
        data_parallel.main()

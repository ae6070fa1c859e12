"""NCCL's place taken by gloo, and copies between the GPUs of one process (DataParallel)."""

import inspect

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import comm


def install() -> None:
    """Let `torch.distributed` and `torch.nn.parallel` exchange tensors of pretended GPUs."""
    begin = c10d.init_process_group

    def init_process_group(backend=None, *args, device_id=None, **kwargs):
        return begin("cpu:gloo,cuda:gloo" if backend is None or "nccl" in backend else backend, *args, **kwargs)

    dist.init_process_group = c10d.init_process_group = init_process_group
    dist.is_nccl_available = c10d.is_nccl_available = lambda: True
    c10d.ProcessGroup._has_hooks = lambda group: False  # gloo's has none, and would warn on being asked
    for name in ("all_reduce", "reduce_scatter_tensor"):
        averaging = _with_averages(getattr(c10d, name))
        setattr(c10d, name, averaging)
        setattr(dist, name, averaging)
    comm.scatter, comm.gather = _scatter, _gather
    comm.broadcast_coalesced, comm.reduce_add_coalesced = _broadcast, _add_up


def _with_averages(collective):
    """A collective of gloo, which has no average: the sum, divided."""
    signature = inspect.signature(collective)

    def call(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments["op"] != dist.ReduceOp.AVG:
            return collective(*args, **kwargs)
        is_async, output = call.arguments["async_op"], call.args[0]
        call.arguments |= {"op": dist.ReduceOp.SUM, "async_op": False}
        collective(*call.args, **call.kwargs)
        output.div_(dist.get_world_size(call.arguments["group"]))
        return _Done() if is_async else None
    return call


class _Done:
    def wait(self, *_):
        return True


def _on(tensor: torch.Tensor, index: int) -> torch.Tensor:
    return tensor.to(torch.device("cuda", index))


def _scatter(tensor, devices=None, chunk_sizes=None, dim=0, streams=None):
    return tuple(_on(part.contiguous(), index) for part, index in zip(tensor.chunk(len(devices), dim), devices,
                                                                      strict=True))


def _gather(tensors, dim=0, destination=None):
    return torch.cat([_on(tensor, destination) for tensor in tensors], dim)


def _broadcast(tensors, devices, buffer_size=0):
    return [[_on(tensor.detach(), index) for tensor in tensors] for index in devices]


def _add_up(inputs, destination=None, buffer_size=0):
    return tuple(sum(_on(tensor, destination) for tensor in copies) for copies in zip(*inputs, strict=True))

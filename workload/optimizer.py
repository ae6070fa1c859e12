"""The optimizer of every strategy: AdamW, its learning rate by step, and clipping by the norm of the whole model."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler

from workload.arguments import Arguments
from workload.errors import InputError
from workload.pipelines.pieces import is_counted


def build_optimizer(parameters: Iterable[torch.nn.Parameter], arguments: Arguments) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); biases and LayerNorm, the parameters of one dimension, do not decay.

    Fused: all of a tensor's update in one pass over memory, where PyTorch's default on a CPU makes a dozen.
    """
    parameters = list(parameters)
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": arguments.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=arguments.learning_rate,
                             eps=arguments.adam_epsilon, fused=True)


def warmup_steps(arguments: Arguments, steps: int) -> int:
    """Steps of linear warm-up in a run of `steps`."""
    if arguments.lr_scheduler == "constant":
        return 0
    chosen = min(500, steps // 10) if arguments.warmup_steps is None else arguments.warmup_steps
    if chosen > steps:
        raise InputError(f"--warmup_steps {chosen}: the run has {steps} steps only")
    return chosen


def build_lr_schedule(optimizer: torch.optim.Optimizer, arguments: Arguments, steps: int) -> LRScheduler:
    """The learning rate by optimizer step: warm-up, then linear to zero; or constant."""
    from transformers import get_scheduler  # brings in accelerate, which --help can do without

    return get_scheduler(arguments.lr_scheduler, optimizer, warmup_steps(arguments, steps), steps)


def clip_by_global_norm(parameters: Iterable[torch.nn.Parameter], max_norm: float,
                        group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Scale gradients so that their norm over the whole model is at most `max_norm`.

    Args:
        group: the ranks that hold the model's other parts; None where this rank holds all of it.

    Returns:
        The norm before clipping, the same on every rank of the group. ()
    """
    parameters = list(parameters)
    # In fp32, whatever the gradients are. A weight that two stages share counts once.
    norm = torch.nn.utils.get_total_norm([p.grad.float() for p in parameters
                                          if p.grad is not None and is_counted(p)])
    if group is not None:
        squared = norm.square()
        dist.all_reduce(squared, group=group)
        norm = squared.sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def norm_on_device(norm: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """A norm that a library returned, in fp32 on the device; the host does not wait for it. ()"""
    if torch.is_tensor(norm):
        return norm.to(device, torch.float32, non_blocking=True)
    return torch.full((), norm, dtype=torch.float32, device=device)


def skip_if_nonfinite(optimizer: torch.optim.AdamW, grad_norm: torch.Tensor, arguments: Arguments) -> None:
    """With --skip_nonfinite, make the coming step change nothing if the norm is infinite or NaN.

    The fused update checks it on the device, as it does for a GradScaler. ZeRO 1 to 3 skip such steps by themselves.
    """
    if arguments.skip_nonfinite:
        found_inf = (~grad_norm.isfinite()).float()
        optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]  PyTorch reads but never declares it

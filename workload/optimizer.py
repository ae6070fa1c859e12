"""One optimizer for every strategy: AdamW, its schedule by step, clipping by the global norm, precision."""

import contextlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from workload.arguments import Arguments
from workload.errors import InputError
from workload.pipelines.pieces import is_counted

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(precision: str | None, tf32: bool, device: torch.device) -> str:
    """`--precision`, or what fits the device; `--tf32` is switched on.

    Raises:
        InputError: bf16 or TF32 on a device without it, TF32 where products are not in fp32.
    """
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else "a CPU"
    has_bf16 = not is_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is None:
        precision = "bf16" if is_gpu and has_bf16 and not tf32 else "fp32"
    if precision.startswith("bf16") and not has_bf16:
        raise InputError(f"--precision {precision}: {name} has no bf16; use fp16 or fp32")
    if tf32:
        if not is_gpu or torch.cuda.get_device_capability(device) < (8, 0):
            raise InputError(f"--tf32: {name} has no TF32; leave it out")
        torch.set_float32_matmul_precision("high")
    return precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """bf16, fp16: matrix products in that type over fp32 parameters. Else nothing."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def keep_casts(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Around micro-batches: autocast casts each weight for the first of them only, not for every one.

    Autocast forgets its casts when its outermost context ends, so this one, which switches nothing on, holds them. It
    must end with the step: when the weights have been updated, their casts are out of date.

    Not where a backward pass sends each gradient as soon as it is there: autograd goes from the youngest operation to
    the oldest, and a cast that was kept is older than all others, so the gradients of weights would come at the end.
    FSDP, which looks for them layer by layer, would lose them.
    """
    return torch.autocast(device.type, enabled=False) if precision in AUTOCAST_DTYPES else contextlib.nullcontext()


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


def build_schedule(optimizer: torch.optim.Optimizer, arguments: Arguments, steps: int) -> LRScheduler:
    """The learning rate by optimizer step: warm-up, then linear to zero; or constant."""
    return get_scheduler(arguments.lr_scheduler, optimizer, warmup_steps(arguments, steps), steps)


def build_scaler(precision: str, device: torch.device,
                 group: dist.ProcessGroup | None = None) -> torch.amp.GradScaler:
    """fp16's loss scaling (off for the others), where the ranks of `group` skip a step all or none."""
    if precision != "fp16":
        return torch.amp.GradScaler(device.type, enabled=False)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # brings in all of FSDP: over a second

    class Scaler(ShardedGradScaler):
        """Leaves it to the fused update to skip itself, on the device: PyTorch's `step` would wait for the answer."""

        def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
            super().unscale_(optimizer)
            [ranks] = self._found_inf_per_device(optimizer).values()  # how many ranks found one. (1,)
            optimizer.found_inf = (ranks > 0).float().squeeze()

        def step(self, optimizer: torch.optim.Optimizer, *_) -> None:
            if not hasattr(optimizer, "found_inf"):
                self.unscale_(optimizer)
            optimizer.step()
            del optimizer.found_inf

    scaler = Scaler(device.type, process_group=group or dist.group.WORLD)
    # A scaler makes its state when it first scales; ranks that compute no loss never would.
    scaler.scale(torch.zeros(1, device=device))
    return scaler


def replace_zero_loss_scaler(zero_optimizer) -> None:
    """Scale losses under DeepSpeed's ZeRO as its own fp16 does, by the constants of PyTorch's GradScaler.

    What `torch_autocast` comes with clips by the norm of the gradient before its scale is taken out, lets each rank
    skip a step for itself, and never lowers a scale that overflows.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    zero_optimizer.torch_autocast_gradscaler = None
    zero_optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0**16, scale_window=2000, min_scale=2.0**-24, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=False)
    zero_optimizer.dynamic_loss_scale = True


def loss_scale(scaler: torch.amp.GradScaler, device: torch.device) -> torch.Tensor:
    """What the scaler multiplies a loss with, 1 where it is off; a tensor, so that the host need not wait. (1,)"""
    return scaler.scale(torch.ones(1, device=device))


def clip_by_global_norm(parameters: Iterable[torch.nn.Parameter], max_norm: float,
                        group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Scale gradients so that their norm over the whole model is at most `max_norm`.

    Args:
        group: the ranks that hold the model's other parts; None where this rank holds all of it.

    Returns:
        The norm before clipping, the same on every rank of the group. ()
    """
    parameters = [p for p in parameters if p.grad is not None]
    # In fp32, whatever the gradients are; of a weight that two stages share only one.
    norm = torch.nn.utils.get_total_norm([p.grad.float() for p in parameters if is_counted(p)])
    if group is not None:
        squared = norm.square()
        dist.all_reduce(squared, group=group)
        norm = squared.sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def norm_on_device(norm: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """A norm that a library gave, wherever it is, in fp32 on the device; the host does not wait for it. ()"""
    if torch.is_tensor(norm):
        return norm.to(device, torch.float32, non_blocking=True)
    return torch.full((), norm, dtype=torch.float32, device=device)


def skip_if_nonfinite(optimizer: torch.optim.AdamW, grad_norm: torch.Tensor, arguments: Arguments) -> None:
    """With --skip_nonfinite the coming step changes nothing where the norm is infinite or no number.

    The fused update itself looks, on the device, as it does for a GradScaler. ZeRO 1 to 3 skip such steps by
    themselves.
    """
    if arguments.skip_nonfinite:
        optimizer.found_inf = (~grad_norm.isfinite()).float()

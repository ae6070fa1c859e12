"""Precision: the type of matrix products, casts that are kept for a whole step, and fp16's loss scaling."""

import contextlib
from typing import Any

import torch
import torch.distributed as dist

from workload.errors import InputError

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(precision: str | None, tf32: bool, device: torch.device) -> str:
    """`--precision`, or the device's default; switches `--tf32` on.

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
            found_inf = (ranks > 0).float().squeeze()
            optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]  PyTorch reads but never declares it

        def step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not hasattr(optimizer, "found_inf"):
                self.unscale_(optimizer)
            optimizer.step()
            del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]  as above

    scaler = Scaler(device.type, process_group=group or dist.group.WORLD)
    # A scaler makes its state when it first scales; ranks that compute no loss never would.
    scaler.scale(torch.zeros(1, device=device))
    return scaler


def replace_zero_loss_scaler(zero_optimizer: Any) -> None:
    """Scale losses under DeepSpeed's ZeRO as its own fp16 does, by the constants of PyTorch's GradScaler.

    The scaler of its `torch_autocast` clips by the norm of the still scaled gradient, lets each rank skip a step for
    itself, and never lowers a scale that overflows.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    zero_optimizer.torch_autocast_gradscaler = None
    zero_optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0**16, scale_window=2000, min_scale=2.0**-24, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=False)
    zero_optimizer.dynamic_loss_scale = True


def loss_scale(scaler: torch.amp.GradScaler, device: torch.device) -> torch.Tensor:
    """The factor by which a scaler multiplies losses, 1 if it is off; a tensor, so that the host does not wait. (1,)"""
    return scaler.scale(torch.ones(1, device=device))

"""Precision and the update: casts that are kept for a step, and fp16's overflow, which no host waits for."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from workload.arguments import Arguments
from workload.optimizer import build_optimizer, norm_on_device
from workload.precision import autocast, build_scaler, keep_casts

CPU = torch.device("cpu")


class Casts(TorchDispatchMode):
    """Counts casts of tensors of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **kwargs or {})


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5))


def forward_and_backward(model: torch.nn.Module, batch: torch.Tensor, precision: str) -> None:
    with autocast(precision, CPU):
        output = model(batch)
    output.float().square().mean().backward()


@pytest.mark.parametrize("precision, casts", [("bf16", 1), ("fp16", 1), ("fp32", 0), ("bf16_native", 0)])
def test_a_weight_is_cast_once_a_step_and_anew_in_the_next(precision, casts, model):
    def gradients(context) -> list[torch.Tensor]:
        model.zero_grad()
        with context:
            for micro_batch in torch.linspace(-1, 1, 3 * 4 * 8).view(3, 4, 8):
                forward_and_backward(model, micro_batch, precision)
        return [parameter.grad.clone() for parameter in model.parameters()]

    for _ in range(2):
        expected = gradients(torch.autocast("cpu", enabled=False, cache_enabled=False))
        with Casts((6, 8)) as seen:
            kept = gradients(keep_casts(precision, CPU))
        # A cast's gradient is a cast back, once for every micro-batch.
        assert seen.count == (casts + 3 if casts else 0)
        for mine, theirs in zip(kept, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.5)  # the update: casts from before it would give the old gradients


def test_a_kept_cast_has_its_gradient_last(model):
    """Why casts are not kept where a backward pass sends gradients as they come."""
    orders = []
    for is_cleared in (False, True):
        order: list[str] = []
        with keep_casts("bf16", CPU):
            forward_and_backward(model, torch.ones(4, 8), "bf16")
            if is_cleared:
                torch.clear_autocast_cache()
            hooks = [model[2].weight.register_hook(lambda _, order=order: order.append("last weight")),
                     model[0].weight.register_hook(lambda _, order=order: order.append("first weight"))]
            with autocast("bf16", CPU):
                hidden = model[0](torch.ones(4, 8))
                hidden.register_hook(lambda _, order=order: order.append("activation"))
                output = model[2](model[1](hidden))
            output.float().sum().backward()
        orders.append(order)
        for hook in hooks:
            hook.remove()
    assert orders[0][0] == "activation" and orders[1] == ["last weight", "activation", "first weight"]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("is_unscaled_first", [True, False])
def test_a_step_that_overflows_is_skipped_by_the_update_itself(is_unscaled_first, model, alone):
    """Unscaled before, to be clipped, as our loops do; or by `step`, as DeepSpeed's engine leaves it to."""
    optimizer = build_optimizer(model.parameters(), Arguments(weight_decay=0.0))
    scaler = build_scaler("fp16", CPU)
    steps = []
    for factor in (1.0, float("inf"), 1.0):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.scale(model(torch.ones(4, 8)).sum() * factor).backward()
        if is_unscaled_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        steps.append([not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)])
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [set(changed) for changed in steps] == [{True}, {False}, {True}]
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}, "Adam has not counted the skipped one"
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("norm", [2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64)])
def test_a_norm_is_a_tensor_whatever_a_library_gives(norm):
    assert torch.equal(norm_on_device(norm, CPU), torch.tensor(2.5))

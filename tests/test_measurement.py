"""The ruler, against known answers."""

import ctypes
import time

import pytest
import torch
import torch.distributed as dist

from measurement import metrics
from measurement.clock import StepClock, ThroughputClock, Work
from measurement.noise_scale import GradientNoise
from measurement.run_json import mark_ended
from workload.atomic_files import write_json
from workload.batches import BatchSplit


@pytest.fixture(scope="module", autouse=True)
def one_process_group(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sigma, replicas, loss_scale", [(0.5, 8, 1), (2.0, 1, 1), (2.0, 2, 1024)])
def test_noise_scale_of_gaussian_gradients(sigma, replicas, loss_scale):
    """Per-sample gradients G + sigma * N(0, I): phi is d * sigma^2 / |G|^2, whatever the loss was scaled with."""
    torch.manual_seed(0)
    dimensions, micro_batches, micro_batch_size = 50, 8, 4
    split = BatchSplit(replicas, micro_batches // replicas, micro_batch_size)
    scale = loss_scale / split.micro_batches
    true_gradient = torch.full((dimensions,), 0.3)
    parts = [torch.nn.Parameter(torch.zeros(dimensions // 2)) for _ in range(2)]  # norms add up over parameters
    noise = GradientNoise(parts, split, every=1)
    norms = []
    for step in range(1, 301):
        noise.begin_step(step)
        for _ in range(micro_batches):
            samples = true_gradient + sigma * torch.randn(micro_batch_size, dimensions)  # d(loss)/d(parameters)
            loss = (samples @ torch.cat(parts)).mean()
            (loss * scale).backward()
        batch_gradient = torch.cat([part.grad for part in parts]) / (micro_batches * scale)
        norms.append(tuple(noise.end_step(batch_gradient.norm(), torch.tensor([loss_scale])).tolist()))
        for part in parts:
            part.grad = None
    measured = metrics.noise_scale(norms, micro_batch_size, micro_batches * micro_batch_size)
    expected = dimensions * sigma**2 / float(true_gradient.square().sum())
    assert measured.samples == pytest.approx(expected, rel=0.1)
    assert measured.reason is None


def test_a_tied_parameter_counts_once_with_both_its_uses():
    tied = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    noise = GradientNoise([tied], BatchSplit(1, 1, 1), every=1)
    noise.begin_step(1)
    (tied.sum() + 2 * tied.sum()).backward()
    assert noise.end_step(tied.grad.norm(), torch.ones(1)).tolist() == pytest.approx([18.0, 18.0])


def test_noise_is_sampled_every_so_many_steps_and_hooks_go_away():
    parameter = torch.nn.Parameter(torch.ones(3))
    noise = GradientNoise([parameter], BatchSplit(1, 1, 1), every=3)
    sampled = []
    for step in range(1, 7):
        noise.begin_step(step)
        parameter.sum().backward()
        sampled.append(noise.end_step(parameter.grad.norm(), torch.ones(1)) is not None)
    assert sampled == [False, False, True, False, False, True]
    assert not parameter._backward_hooks


def test_moments_and_efficiency_by_hand():
    # s_b = |G|^2 + tr/b: with |G|^2 = 3 and tr = 40, 13 at 4 samples and 5 at 20.
    assert metrics.gradient_moments(13, 5, small=4, large=20) == pytest.approx((3, 40))
    assert metrics.noise_scale([(13, 5), (13, 5)], 4, 20).samples == pytest.approx(40 / 3)
    assert metrics.statistical_efficiency(48, batch=32, reference_batch=16) == pytest.approx(64 / 80)
    assert metrics.statistical_efficiency(0, batch=32, reference_batch=16) == pytest.approx(0.5)
    assert metrics.statistical_efficiency(5, batch=16, reference_batch=16) == 1
    assert metrics.goodput(100, 0.8) == pytest.approx(80)
    assert metrics.published_statistical_efficiency(0.4, micro_batch_size=16) == pytest.approx(0.025)


@pytest.mark.parametrize("norms, small, large, reason", [
    ([], 4, 32, "no step"), ([(4.0, 4.0)], 32, 32, "two batch sizes"), ([(8.0, 0.5)], 4, 32, "not positive"),
    ([(float("inf"), float("inf"))], 4, 32, "no step"), ([(1.0, 2.0)], 4, 32, "not positive"),
])
def test_noise_scale_that_cannot_be_stated_is_empty_with_a_reason(norms, small, large, reason):
    measured = metrics.noise_scale(norms, small, large)
    assert measured.samples is None and reason in measured.reason


def test_ratio_of_sums_not_mean_of_ratios():
    steps = [(13, 5), (9, 6)]
    (g1, t1), (g2, t2) = (metrics.gradient_moments(*norms, 4, 20) for norms in steps)
    assert metrics.noise_scale(steps, 4, 20).samples == pytest.approx((t1 + t2) / (g1 + g2))


@pytest.mark.alone
def test_throughput_clock_leaves_out_the_first_steps_and_evaluation():
    clock = ThroughputClock(torch.device("cpu"), steps_to_skip=2)
    step = Work(steps=1, samples=10, tokens=100, padded_tokens=150, model_flops=1e6, hardware_flops=2e6, data_s=0.5)
    clock.open()
    for _ in range(2):
        time.sleep(0.2)  # skipped
        clock.count(step)
    for _ in range(3):
        time.sleep(0.02)
        clock.count(step)
    clock.close()
    time.sleep(0.3)  # evaluation
    clock.open()
    time.sleep(0.02)
    clock.count(step)
    clock.close()
    assert clock.work == Work(4, 40, 400, 600, 4e6, 8e6, 2.0)
    assert 0.08 <= clock.seconds < 0.2


def test_steps_are_as_exact_after_a_day_as_at_first(monkeypatch):
    """CUDA gives the milliseconds between two events as a float32: after a day in steps of eight."""
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.moment = now[0]

        def query(self):
            return now[0] > self.moment

        def elapsed_time(self, end):
            return ctypes.c_float(1000 * (end.moment - self.moment)).value

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock, marks = StepClock(torch.device("cuda")), []
    for now[0] in (86_400.0, 86_400.0123, 86_400.0246, 86_400.1):
        marks.append(clock.mark())
    assert [mark.has_passed() for mark in marks] == [True, True, True, False]
    ends = [mark.seconds() for mark in marks]
    steps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    assert steps == pytest.approx([0.0123, 0.0123, 0.0754], abs=1e-6)
    assert ends[0] - clock.began == pytest.approx(86_400)


def test_the_first_bad_end_states_the_reason(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"status": "running", "reason": None})
    mark_ended(path, "failed", "rank 1: ValueError: first")
    mark_ended(path, "out_of_memory", "second")
    assert '"failed"' in path.read_text() and "first" in path.read_text()
    write_json(path, {"status": "finished", "reason": None})
    mark_ended(path, "failed", "too late")
    assert '"finished"' in path.read_text()
    mark_ended(tmp_path / "not_begun.json", "failed", "nothing to mark")

"""Tensor parallelism: what is shared out, what dropout draws on each device, and what is refused."""

import json
import math
import statistics

import pytest
import torch

from tests.shared.runs import SAMPLE, rows
from workload.models.tensor_plans import Arrangement


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("shape, is_transposed", [((24, 5), False), ((5, 24), True), ((24,), False), ((24,), True)])
def test_a_fused_product_goes_to_devices_head_by_head_and_back(devices, shape, is_transposed):
    """Each device gets its part of the queries, of the keys and of the values."""
    whole = torch.arange(math.prod(shape)).view(shape)
    arrangement = Arrangement(is_transposed, devices)
    arranged = arrangement.arrange(whole)
    rows = whole.t() if is_transposed else whole
    for device, part in enumerate(arranged.chunk(devices)):
        expected = [each.chunk(devices)[device] for each in rows.chunk(3)]
        assert torch.equal(part, torch.cat(expected))
    assert torch.equal(arrangement.put_back(arranged), whole)


# ---------------------------------------------------------------------- dropout

@pytest.fixture(params=[(), ("--sequence_parallel",)], ids=["", "sequence"])
def dropped(request, start_ranks, tmp_path):
    """What `tests/scripts/tensor_dropout.py` found on two devices."""
    start_ranks("tests/scripts/tensor_dropout.py", *request.param, tmp_path / "outcome.json", count=2, check=True)
    return request.param, json.loads((tmp_path / "outcome.json").read_text())


def test_devices_drop_the_same_of_what_all_hold_and_other_values_of_what_is_shared_out(dropped):
    flags, outcome = dropped
    first, second = outcome["masks"]
    assert first.keys() == second.keys() and len(first) == 1 + 2 * 3
    same = {name for name, mask in first.items() if mask == second[name]}
    of_hidden = {name for name in first if name.endswith("output.dropout")}
    assert len(of_hidden) == 4
    assert same == {"bert.embeddings.dropout"} | (set() if flags else of_hidden)
    for name, mask in first.items():
        whole = 4 * 4 * 16 * 16 if name.endswith("self") else 4 * 16 * 16  # attention weights; hidden states
        assert len(mask) == (whole if name in same else whole / 2)
        assert 0.8 < statistics.mean(mask) < 0.97
        if name not in same:  # independent, not merely shifted
            assert abs(statistics.correlation(mask, second[name])) < 5 / math.sqrt(len(mask))


def test_losses_with_dropout_are_distributed_as_on_one_device(dropped):
    """Means within 3 standard deviations, and spreads: one mask for all devices would leave means and widen spreads."""
    whole, shared_out = dropped[1]["whole"], dropped[1]["shared out"]
    deviation = math.sqrt((statistics.variance(whole) + statistics.variance(shared_out)) / len(whole))
    assert abs(statistics.mean(whole) - statistics.mean(shared_out)) < 3 * deviation
    assert deviation > 0
    assert statistics.stdev(shared_out) == pytest.approx(statistics.stdev(whole), rel=3 / math.sqrt(len(whole)))


# ---------------------------------------------------------------------- what each rank holds

@pytest.mark.parametrize("command", rows("tensor x 2", "tensor sequence x 2", "tensor x 4", "tensor 2 x 2",
                                         "tensor sequence FSDP 2 x 2"))
def test_a_tensor_group_holds_the_model_once(command, train):
    run = train(*command)
    ranks = run.description["ranks"]
    for replica in {rank["replica"] for rank in ranks}:
        group = [rank for rank in ranks if rank["replica"] == replica]
        assert [rank["tensor_rank"] for rank in group] == list(range(len(group)))
        assert sum(rank["parameters"] for rank in group) == sum(weight.numel() for weight in run.weights().values())
    assert len({rank["replica"] for rank in ranks}) == int(run.summary["replicas"])


# ---------------------------------------------------------------------- what is refused

@pytest.mark.parametrize("flags, words", [
    (["--num_gpus", "3"], ["--tensor_parallel 3", "4 heads", "use 1"]),
    (["--num_gpus", "8"], ["--tensor_parallel 8", "4 heads", "use 1 or 2 or 4"]),
    (["--num_gpus", "4", "--tensor_parallel", "3"], ["--tensor_parallel 3", "4 devices", "use 1 or 2 or 4"]),
    (["--num_gpus", "4", "--shard_replicas"], ["--shard_replicas", "all 4 devices make up one tensor group"]),
    (["--num_gpus", "4", "--sequence_parallel", "--max_seq_length", "126"],
     ["--sequence_parallel", "126 tokens", "use --max_seq_length 124"]),
    (["--num_gpus", "2", "--compile"], ["--compile", "use fsdp.py"]),
    (["--tensor_parallel", "0"], ["--tensor_parallel 0", "at least 1"]),
])
def test_what_does_not_divide_is_refused_in_a_line_with_what_fits(flags, words, start_ranks, tmp_path):
    done = start_ranks("tensor_parallel.py", *SAMPLE, *flags, "--output_dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr

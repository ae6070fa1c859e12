"""One order, cut in the same way for everyone."""

import pytest
import torch
from datasets import Dataset

from workload.arguments import Arguments, parse_arguments
from workload.batches import Batches, BatchSplit, OrderHash, plan_stages, split_batch
from workload.errors import InputError

ROWS = 103


def collate(rows, length, is_padded):
    own = torch.tensor(rows["row"].to_numpy())
    return {"input_ids": own[:, None].expand(-1, length)}, {"row": own}


def batches(split: BatchSplit, replica: int = 0, rows: int = ROWS, is_grouped: bool = True) -> Batches:
    features = Dataset.from_dict({"row": list(range(rows)), "feature_id": [f"id{row}" for row in range(rows)],
                                  "length": [row % 38 + 5 for row in range(rows)]})
    return Batches(features, collate, split, replica, torch.device("cpu"), max_length=42, is_grouped=is_grouped,
                   needed=True)


def consumed(split: BatchSplit, steps: int = 12, seed: int = 3) -> tuple[list[set[int]], str]:
    """Rows of each step over all replicas, and the hash of the order."""
    sets: list[set[int]] = [set() for _ in range(steps)]
    totals = []
    for replica in range(split.replicas):
        part, order = batches(split, replica), OrderHash()
        for step, batch in enumerate(part.training(seed, steps)):
            for micro_batch in part.share(batch).micro_batches:
                assert sets[step].isdisjoint(micro_batch.indices)
                sets[step] |= set(micro_batch.indices)
                order.add(step, micro_batch.sample_ids)
        totals.append(order.total)
    return sets, OrderHash.combine(totals)


@pytest.mark.parametrize("split", [BatchSplit(1, 1, 8), BatchSplit(1, 4, 2), BatchSplit(2, 2, 2), BatchSplit(4, 1, 2),
                                   BatchSplit(8, 1, 1)])
def test_every_split_sees_the_same_batches(split):
    assert consumed(split) == consumed(BatchSplit(1, 2, 4))


@pytest.mark.parametrize("is_grouped", [True, False])
def test_an_epoch_sees_no_row_twice_and_drops_the_incomplete_batch(is_grouped):
    part = batches(BatchSplit(1, 2, 4), is_grouped=is_grouped)
    epoch = part.epoch(seed=0, epoch=0)
    assert epoch.shape == (ROWS // 8, 8) and len(epoch.unique()) == epoch.numel()
    assert not torch.equal(epoch, part.epoch(seed=0, epoch=1))
    assert not torch.equal(epoch, part.epoch(seed=1, epoch=0))
    assert torch.equal(epoch, part.epoch(seed=0, epoch=0))


def padding(part: Batches, epoch: torch.Tensor) -> float:
    """Share of what the devices compute."""
    padded = torch.tensor([part.padded_length(batch) for batch in epoch]) * epoch.shape[1]
    return 1 - part.lengths[epoch].sum().item() / padded.sum().item()


def test_grouping_leaves_little_padding_and_no_order_of_lengths():
    part, plain = (batches(BatchSplit(1, 4, 4), rows=4000, is_grouped=is_grouped) for is_grouped in (True, False))
    epoch = part.epoch(seed=0, epoch=0)
    assert padding(part, epoch) < 0.15 < 0.35 < padding(plain, plain.epoch(seed=0, epoch=0))
    lengths = part.lengths[epoch].float()  # (steps, batch)
    assert all(0 < (part.lengths[batch][:-1] <= part.lengths[batch][1:]).float().mean() < 1 for batch in epoch
               if part.lengths[batch].max() - part.lengths[batch].min() > 1), "sorted within a batch"
    steps = torch.arange(len(epoch)).float()
    assert abs(torch.corrcoef(torch.stack([steps, lengths.mean(1)]))[0, 1]) < 0.2, "sorted over the epoch"
    first, second = lengths[:, :8].mean(), lengths[:, 8:].mean()
    assert abs(first - second) < 0.1, "the first slices of the batches hold other lengths than the last"


def test_what_is_dropped_at_the_end_of_an_epoch_does_not_hang_on_its_length():
    part = batches(BatchSplit(1, 1, 64), rows=120)
    dropped = [sorted(set(range(120)) - set(part.epoch(seed, 0).flatten().tolist())) for seed in range(20)]
    means = [part.lengths[rows].float().mean() for rows in dropped]
    assert abs(sum(means) / len(means) - part.lengths.float().mean()) < 1


def test_a_replicas_shares_are_its_slices_and_come_one_ahead():
    split = BatchSplit(2, 2, 4)
    part = batches(split, replica=1)
    asked = []

    def watched():
        for batch in part.training(seed=0, steps=5):
            asked.append(batch)
            yield batch

    seen = 0
    for batch, share in part.shares(watched()):
        seen += 1
        assert len(asked) == min(seen + 1, 5)
        assert [row for each in share.micro_batches for row in each.indices] == batch[8:].tolist()
        for each in share.micro_batches:
            assert each.inputs["input_ids"].shape == (4, share.length)
            assert each.inputs["input_ids"][:, 0].tolist() == each.labels["row"].tolist() == each.indices
            assert each.sample_ids == [f"id{row}" for row in each.indices]
    assert seen == 5


def test_what_goes_wrong_while_a_share_is_made_is_raised():
    part = batches(BatchSplit(1, 2, 4))
    part.collate = None
    with pytest.raises(TypeError):
        list(part.shares(part.training(seed=0, steps=3)))


def test_the_hash_notices_another_order_a_double_and_a_gap():
    def digest(steps: list[list[str]]) -> str:
        order = OrderHash()
        for number, ids in enumerate(steps):
            order.add(number, ids)
        return OrderHash.combine([order.total])

    right = digest([["a", "b"], ["c", "d"]])
    assert right == digest([["b", "a"], ["d", "c"]])  # within a batch the order is nobody's business
    for wrong in ([["a", "c"], ["b", "d"]], [["a", "b"], ["c", "c"]], [["a", "b"], ["c"]], [["a", "b"]] * 2):
        assert digest(wrong) != right


def test_a_process_with_several_devices_takes_the_samples_of_all_of_them():
    split = BatchSplit(replicas=4, micro_batches=3, micro_batch_size=2)
    assert split.of_processes(1) == split
    assert split.of_processes(2) == BatchSplit(2, 3, 4)
    assert split.of_processes(4) == BatchSplit(1, 3, 8)
    assert consumed(split, steps=4) == consumed(split.of_processes(4), steps=4)


@pytest.mark.parametrize("split", [BatchSplit(1, 1, 8), BatchSplit(2, 2, 2), BatchSplit(4, 1, 2)])
def test_evaluation_covers_every_row_once(split):
    seen = []
    for replica in range(split.replicas):
        part = batches(split, replica)
        for batch in part.evaluation():
            for micro_batch in part.share(batch).micro_batches:
                assert len(micro_batch.indices) == split.micro_batch_size
                seen.extend(micro_batch.indices)
    assert set(seen) == set(range(ROWS))
    assert len(seen) == -(-ROWS // 8) * 8  # repeats of the last row fill the last batch


def test_a_global_batch_is_padded_to_one_length_on_every_replica():
    parts = [batches(BatchSplit(4, 1, 2), replica) for replica in range(4)]
    for batch in parts[0].training(seed=0, steps=5):
        lengths = {part.share(batch).length for part in parts}
        [length] = lengths
        longest = int(parts[0].lengths[batch].max())
        assert longest <= length <= 42 and (length % 8 == 0 or length == 42)


@pytest.mark.parametrize("flags, replicas, micro_batches, expected", [
    ([], 1, None, BatchSplit(1, 4, 16)), ([], 2, None, BatchSplit(2, 2, 16)), ([], 4, None, BatchSplit(4, 1, 16)),
    ([], 8, None, BatchSplit(8, 1, 8)), (["--global_batch_size", "2"], 1, None, BatchSplit(1, 2, 1)),
    (["--micro_batch_size", "4"], 2, None, BatchSplit(2, 8, 4)), ([], 1, 8, BatchSplit(1, 8, 8)),
    ([], 2, 8, BatchSplit(2, 8, 4)),
])
def test_how_a_batch_is_split(flags, replicas, micro_batches, expected):
    assert split_batch(parse_arguments(Arguments, flags), replicas, micro_batches) == expected


@pytest.mark.parametrize("flags, replicas, micro_batches, words", [
    ([], 3, None, "--global_batch_size 64 cannot be divided evenly over 3 replicas; use 63 or 66"),
    (["--micro_batch_size", "5"], 2, None, "--micro_batch_size 5"),
    ([], 1, 7, "--micro_batches 7"),
    (["--micro_batch_size", "4"], 1, 8, "--micro_batch_size 4 and --micro_batches 8"),
])
def test_a_batch_that_cannot_be_split_is_refused(flags, replicas, micro_batches, words):
    with pytest.raises(InputError, match=words):
        split_batch(parse_arguments(Arguments, flags), replicas, micro_batches)


@pytest.mark.parametrize("stages, micro_batches, batch, devices, expected", [
    (None, None, 64, 4, (4, 16)), (2, None, 64, 4, (2, 8)), (None, None, 12, 2, (2, 6)), (2, 4, 32, 2, (2, 4)),
    (None, None, 64, 1, (1, 4)),
])
def test_stages_and_micro_batches(stages, micro_batches, batch, devices, expected):
    assert plan_stages(stages, micro_batches, batch, devices) == expected


def test_devices_that_make_no_whole_pipelines_are_refused():
    with pytest.raises(InputError, match="--stages 3: 4 devices .* use 1 or 2 or 4"):
        plan_stages(3, None, 64, 4)

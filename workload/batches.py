"""One order of samples, cut in the same way for every strategy.

Per seed there is one list of global batches. A replica takes its slice of each, and cuts it into micro-batches.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from datasets import Dataset

from workload.arguments import Arguments
from workload.errors import InputError

PAD_TO_MULTIPLE_OF = 8  # lengths that matrix units like


@dataclass(frozen=True)
class Split:
    """How a global batch is spread: global_batch_size = replicas x micro_batches x micro_batch_size."""

    replicas: int
    micro_batches: int
    micro_batch_size: int

    def of_processes(self, devices: int) -> "Split":
        """As processes see it that have so many devices each: their forward passes take the samples of all of them."""
        return Split(self.replicas // devices, self.micro_batches, self.micro_batch_size * devices)


@dataclass
class MicroBatch:
    """What one forward pass takes, padded to the longest window of its global batch."""

    inputs: dict[str, torch.Tensor]  # input_ids, token_type_ids, attention_mask: (micro_batch, length)
    labels: dict[str, torch.Tensor]  # what the task's loss needs besides the logits
    indices: list[int]  # rows of the data set
    sample_ids: list[str]


@dataclass
class Share:
    """This replica's part of a global batch."""

    length: int  # that every micro-batch of the global batch is padded to
    micro_batches: list[MicroBatch]  # none where the rank neither feeds the model nor computes its loss


def plan_stages(stages: int | None, micro_batches: int | None, global_batch_size: int, devices: int) -> tuple[int, int]:
    """Pipeline stages, and micro-batches that a step sends through each pipeline.

    Raises:
        InputError: the devices cannot be divided into pipelines of so many stages.
    """
    stages = stages or devices
    if devices % stages:
        fits = " or ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
        raise InputError(f"--stages {stages}: {devices} devices cannot be divided into pipelines of that many; "
                         f"{fits} fits")
    share = max(global_batch_size // (devices // stages), 1)
    return stages, micro_batches or max(n for n in range(1, 4 * stages + 1) if share % n == 0)


def split_batch(arguments: Arguments, replicas: int, micro_batches: int | None = None) -> Split:
    """Cut `--global_batch_size` over `replicas`, into `micro_batches` each (default: see `--micro_batch_size`).

    Raises:
        InputError: the batch does not divide evenly; the message names the numbers that would fit.
    """
    batch = arguments.global_batch_size
    if batch % replicas:
        fits = f"{max(batch // replicas, 1) * replicas} or {(batch // replicas + 1) * replicas}"
        raise InputError(f"--global_batch_size {batch} cannot be divided evenly over {replicas} replicas; {fits} fits")
    share = batch // replicas
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    size = arguments.micro_batch_size
    if size is None and micro_batches is None:
        # At least 4 micro-batches over all devices, so that the noise scale has two batch sizes to compare.
        enough = [divisor for divisor in divisors if batch // divisor >= 4]
        size = max(enough, default=1)
    elif micro_batches is not None:
        if share % micro_batches:
            raise InputError(f"--micro_batches {micro_batches}: {share} samples a replica cannot be divided into that "
                             f"many; {_in_words(divisors)} fits")
        if size is not None and size * micro_batches != share:
            raise InputError(f"--micro_batch_size {size} and --micro_batches {micro_batches} make "
                             f"{size * micro_batches} samples a replica, not {share}; give one of them")
        size = share // micro_batches
    if share % size:
        raise InputError(f"--micro_batch_size {size}: {share} samples a device cannot be divided into that; "
                         f"{_in_words(divisors)} fits")
    return Split(replicas, share // size, size)


class Batches:
    """The global batches of a data set, and this replica's micro-batches of each.

    Args:
        features: rows with `feature_id` and whatever `collate` needs.
        lengths: tokens of each row. (rows,)
        collate: (rows, length) -> (inputs, labels), padded to `length`.
        split: how a global batch is spread.
        replica: which slice is ours.
        max_length: that no batch is padded beyond.
        needed: whether this rank feeds the model or computes its loss; a pipeline's middle stages do neither.
    """

    def __init__(self, features: Dataset, lengths: torch.Tensor, collate, split: Split, replica: int,
                 max_length: int, needed: bool) -> None:
        self.features, self.lengths, self.collate = features, lengths, collate
        self.split, self.replica, self.max_length, self.needed = split, replica, max_length, needed
        self.global_batch_size = split.replicas * split.micro_batches * split.micro_batch_size

    def epoch(self, seed: int, epoch: int) -> torch.Tensor:
        """Row numbers of an epoch's global batches, the last incomplete one dropped. (steps, global_batch)"""
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(self.features), generator=generator)
        steps = len(order) // self.global_batch_size
        return order[: steps * self.global_batch_size].view(steps, self.global_batch_size)

    def training(self, seed: int, steps: int) -> Iterator[torch.Tensor]:
        """The run's global batches, epoch after epoch: `steps` tensors of row numbers. (global_batch,)"""
        epoch = 0
        while steps > 0:
            for batch in self.epoch(seed, epoch)[:steps]:
                yield batch
                steps -= 1
            epoch += 1

    def evaluation(self) -> Iterator[torch.Tensor]:
        """Every row once, in order; the last batch is filled up with repeats of its last row. (global_batch,)"""
        for rows in torch.arange(len(self.features)).split(self.global_batch_size):
            yield torch.cat([rows, rows[-1:].expand(self.global_batch_size - len(rows))])

    def padded_length(self, batch: torch.Tensor) -> int:
        """The length that a whole global batch is padded to, the same on every replica."""
        longest = int(self.lengths[batch].max())
        return min(-(-longest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF, self.max_length)

    def share(self, batch: torch.Tensor, device: torch.device) -> Share:
        """This replica's slice of a global batch, cut and padded."""
        length = self.padded_length(batch)
        if not self.needed:
            return Share(length, [])
        slices = batch.view(self.split.replicas, self.split.micro_batches, self.split.micro_batch_size)[self.replica]
        made = []
        for indices in slices.tolist():
            rows = self.features[indices]
            inputs, labels = self.collate(rows, length)
            made.append(MicroBatch({name: tensor.to(device) for name, tensor in inputs.items()},
                                   {name: tensor.to(device) for name, tensor in labels.items()},
                                   indices, rows["feature_id"]))
        return Share(length, made)


class OrderHash:
    """A digest of which samples were consumed at which step, equal however the batch was spread.

    Every rank adds what it feeds to the model; the sum over ranks is the digest. A sample that is seen twice, left
    out, or seen at another step changes it.
    """

    def __init__(self) -> None:
        self.total = 0

    def add(self, step: int, sample_ids: list[str]) -> None:
        for sample_id in sample_ids:
            self.total += int.from_bytes(hashlib.sha256(f"{step}:{sample_id}".encode()).digest())

    @staticmethod
    def combine(totals: list[int]) -> str:
        return f"{sum(totals) % 2**256:064x}"


def _in_words(numbers: list[int]) -> str:
    return " or ".join(str(number) for number in numbers[-4:])

"""One order of samples, cut in the same way for every strategy.

Per seed there is one list of global batches. A replica takes its slice of each, and cuts it into micro-batches.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workload.argument_checks import divisors
from workload.arguments import Arguments
from workload.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset  # takes a second

SORTED_BATCHES = 50  # batches sorted by length together; with 64 samples each, 3,200 samples
# Batches are padded to a multiple of this. On GPUs a large one, so that kernels are chosen and compiled for few shapes.
PAD_TO_MULTIPLE_OF = {"cuda": 64, "cpu": 8}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is spread: global_batch_size = replicas x micro_batches x micro_batch_size."""

    replicas: int
    micro_batches: int
    micro_batch_size: int

    def of_processes(self, devices: int) -> "BatchSplit":
        """The split per process when each process drives `devices` devices (DataParallel): fewer replicas, larger
        micro-batches.
        """
        return BatchSplit(self.replicas // devices, self.micro_batches, self.micro_batch_size * devices)


@dataclass
class MicroBatch:
    """The samples of one forward pass, padded to the longest of their global batch."""

    inputs: Tensors  # input_ids, token_type_ids, attention_mask if padded: (micro_batch, length)
    labels: Tensors  # the arguments of the task's loss besides the logits
    indices: list[int]  # rows of the data set
    sample_ids: list[str]
    host_tokens: torch.Tensor  # input_ids on the host


@dataclass
class Share:
    """This replica's part of a global batch."""

    length: int  # padded length of every micro-batch of the global batch
    is_padded: bool  # whether any sample of the global batch is shorter; else no micro-batch has an attention mask
    micro_batches: list[MicroBatch]  # none where the rank neither feeds the model nor computes its loss


def plan_stages(stages: int | None, micro_batches: int | None, global_batch_size: int, devices: int) -> tuple[int, int]:
    """Pipeline stages, and micro-batches that a step sends through each pipeline.

    Raises:
        InputError: the devices cannot be divided into pipelines of so many stages.
    """
    stages = stages or devices
    if devices % stages:
        fits = " or ".join(map(str, divisors(devices)))
        raise InputError(f"--stages {stages}: {devices} devices cannot be divided into pipelines of that many; "
                         f"use {fits}")
    share = max(global_batch_size // (devices // stages), 1)
    return stages, micro_batches or max(n for n in divisors(share) if n <= 4 * stages)


def split_batch(arguments: Arguments, replicas: int, micro_batches: int | None = None) -> BatchSplit:
    """Cut `--global_batch_size` over `replicas`, into `micro_batches` each (default: see `--micro_batch_size`).

    Raises:
        InputError: the batch does not divide evenly; the message names the numbers that would fit.
    """
    batch = arguments.global_batch_size
    if batch % replicas:
        fits = f"{max(batch // replicas, 1) * replicas} or {(batch // replicas + 1) * replicas}"
        raise InputError(f"--global_batch_size {batch} cannot be divided evenly over {replicas} replicas; use {fits}")
    share = batch // replicas
    fitting = divisors(share)
    size = arguments.micro_batch_size
    if micro_batches is not None:
        if share % micro_batches:
            raise InputError(f"--micro_batches {micro_batches}: {share} samples a replica cannot be divided into that "
                             f"many; use {_in_words(fitting)}")
        if size is not None and size * micro_batches != share:
            raise InputError(f"--micro_batch_size {size} and --micro_batches {micro_batches} make "
                             f"{size * micro_batches} samples a replica, not {share}; give one of them")
        size = share // micro_batches
    elif size is None:
        # At least 4 micro-batches over all devices, so that the noise scale has two batch sizes to compare.
        enough = [divisor for divisor in fitting if batch // divisor >= 4]
        size = max(enough, default=1)
    if share % size:
        raise InputError(f"--micro_batch_size {size}: {share} samples a device cannot be divided into that; "
                         f"use {_in_words(fitting)}")
    return BatchSplit(replicas, share // size, size)


class Batches:
    """The global batches of a data set, and this replica's micro-batches of each.

    Args:
        features: rows with `feature_id`, `length` (tokens) and whatever `collate` needs.
        collate: (Arrow table of rows, length, whether any is shorter) -> (inputs, labels), padded to `length`.
        split: how a global batch is spread.
        replica: number of the replica whose slices this rank takes.
        device: the micro-batches' device.
        max_length: upper limit of padded lengths, in tokens.
        is_grouped: whether the samples of a batch have similar lengths.
        needed: whether this rank feeds the model or computes its loss; a pipeline's middle stages do neither.
    """

    def __init__(self, features: "Dataset", collate: Callable[["pa.Table", int, bool], tuple[Tensors, Tensors]],
                 split: BatchSplit, replica: int, device: torch.device, max_length: int, is_grouped: bool,
                 needed: bool) -> None:
        self.features, self.collate = features.with_format("arrow"), collate
        self.lengths = torch.from_numpy(features.with_format("numpy")["length"][:])  # (rows,)
        self.split, self.replica, self.device, self.needed = split, replica, device, needed
        self.max_length, self.is_grouped = max_length, is_grouped
        self.global_batch_size = split.replicas * split.micro_batches * split.micro_batch_size

    def epoch(self, seed: int, epoch: int) -> torch.Tensor:
        """Row numbers of an epoch's global batches, the last incomplete one dropped. (steps, global_batch)

        Grouped by length, rows are shuffled; sorted by length within stretches of many batches; the batches are
        shuffled, and the rows within each: so the slices that are cut from a batch are random samples of it.
        """
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(self.features), generator=generator)
        steps = len(order) // self.global_batch_size
        order = order[: steps * self.global_batch_size]
        if not self.is_grouped:
            return order.view(steps, self.global_batch_size)
        stretches = order.split(SORTED_BATCHES * self.global_batch_size)
        order = torch.cat([rows[self.lengths[rows].argsort(stable=True)] for rows in stretches])
        batches = order.view(steps, self.global_batch_size)[torch.randperm(steps, generator=generator)]
        return batches.gather(1, torch.rand(batches.shape, generator=generator).argsort(dim=1))

    def training(self, seed: int, steps: int) -> Iterator[torch.Tensor]:
        """The run's global batches, epoch after epoch: `steps` tensors of row numbers. (global_batch,)"""
        epoch = 0
        while steps > 0:
            for batch in self.epoch(seed, epoch)[:steps]:
                yield batch
                steps -= 1
            epoch += 1

    def evaluation(self) -> Iterator[torch.Tensor]:
        """Every row once. (global_batch,)

        The longest come first, so that a run that needs too much memory fails at once. The last batch is filled up with
        repeats of its last row.
        """
        for rows in self.lengths.argsort(stable=True, descending=True).split(self.global_batch_size):
            yield torch.cat([rows, rows[-1:].expand(self.global_batch_size - len(rows))])

    def padded_length(self, batch: torch.Tensor) -> int:
        """The length that a whole global batch is padded to, the same on every replica."""
        longest, multiple = int(self.lengths[batch].max()), PAD_TO_MULTIPLE_OF[self.device.type]
        return min(-(-longest // multiple) * multiple, self.max_length)

    def share(self, batch: torch.Tensor) -> Share:
        """This replica's slice of a global batch, cut and padded, on its way to the device."""
        length = self.padded_length(batch)
        is_padded = bool((self.lengths[batch] < length).any())
        if not self.needed:
            return Share(length, is_padded, [])
        mine = batch.view(self.split.replicas, -1)[self.replica].tolist()
        rows = self.features[mine]
        ids, size = rows["feature_id"].to_pylist(), self.split.micro_batch_size
        on_host = self.collate(rows, length, is_padded)
        inputs, labels = ({name: to_device(tensor, self.device).split(size) for name, tensor in tensors.items()}
                          for tensors in on_host)
        host_tokens = on_host[0]["input_ids"].split(size)
        return Share(length, is_padded, [
            MicroBatch({name: parts[number] for name, parts in inputs.items()},
                       {name: parts[number] for name, parts in labels.items()},
                       mine[number * size:(number + 1) * size], ids[number * size:(number + 1) * size],
                       host_tokens[number])
            for number in range(self.split.micro_batches)])

    def shares(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, Share]]:
        """Each global batch with our share of it, made by a thread while the devices work on the one before."""
        # A thread has a current GPU of its own, by default the first.
        set_gpu = functools.partial(torch.cuda.set_device, self.device) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(1, initializer=set_gpu) as loader:
            coming: deque[tuple[torch.Tensor, Future[Share]]] = deque()
            for batch in batches:
                coming.append((batch, loader.submit(self.share, batch)))
                if len(coming) > 1:
                    batch, share = coming.popleft()
                    yield batch, share.result()
            for batch, share in coming:
                yield batch, share.result()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, on its way there: from pinned memory the copy does not make the host wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class OrderHash:
    """A digest of the samples consumed at each step; it does not depend on how batches are spread.

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

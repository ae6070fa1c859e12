"""Groups of ranks, and values gathered from all ranks."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def new_groups(ranks: list[list[int]]) -> dist.ProcessGroup | None:
    """Make groups of ranks; to be called on every rank. Returns the one that this rank is in, if any."""
    group, _ = dist.new_subgroups_by_enumeration(ranks)
    assert not isinstance(group, int)  # a number only on ranks outside a group
    return group


def gather(value: T) -> list[T] | None:
    """Every rank's value, in the order of ranks, on rank 0; None on the others. To be called on every rank."""
    values: list = [None] * dist.get_world_size()
    is_main = dist.get_rank() == 0
    dist.gather_object(value, values if is_main else None)
    return values if is_main else None

"""`fsdp.py --shard_group` with groups that train by themselves, which the equivalence test must notice."""

import torch.distributed as dist

import fsdp
from workload.errors import one_line_errors

all_reduce = dist.all_reduce


def within_groups(tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
    """Leave out what would cross groups, as if each were the only one."""
    ranks = dist.get_process_group_ranks(group)
    if len(ranks) > 1 and ranks[1] - ranks[0] > 1:
        return tensor.mul_(len(ranks)) if op == dist.ReduceOp.SUM else tensor
    return all_reduce(tensor, op, group, async_op)


dist.all_reduce = within_groups

if __name__ == "__main__":
    with one_line_errors():
        fsdp.main()

"""A strategy that is broken in the way that its first argument names; `verify.py` must notice each.

    mutated.py clipping_left_to_deepspeed --num_gpus 2 --stages 2 ...
"""

import sys

import torch
import torch.distributed as dist

from workload.errors import one_line_errors


def clipping_left_to_deepspeed() -> None:
    """Its pipeline counts the first stage's gradients only."""
    from tests.scripts import unaided_clipping

    unaided_clipping.pipeline.main()


def bucket_not_reduced() -> None:
    """DDP without the exchange of one of its buckets."""
    import bert_baseline

    class Parallel(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, bucket_cap_mb=0.1, **options)  # the model is small: several buckets
            self.register_comm_hook(None, exchange)

    def exchange(_, bucket) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        if bucket.index() != 0:
            dist.all_reduce(bucket.buffer())
            bucket.buffer().div_(dist.get_world_size())
        future.set_result(bucket.buffer())
        return future

    bert_baseline.DistributedDataParallel = Parallel
    bert_baseline.main()


def shard_scaled() -> None:
    """FSDP with the gradients of one rank's shard 2 % too large."""
    import fsdp
    from workload.shards import LocalShards

    take_gradients = LocalShards.take_gradients

    def take(self) -> None:
        take_gradients(self)
        for shard in self.values() if dist.get_rank() == 1 else ():
            shard.grad *= 1.02

    LocalShards.take_gradients = take
    fsdp.main()


def replicated_counted_twice() -> None:
    """Tensor parallelism in which every device counts what all of its group hold."""
    import tensor_parallel
    from workload import tensor_shards

    tensor_shards.is_counted = lambda *_: True
    tensor_parallel.main()


def sample_fed_twice() -> None:
    """ZeRO with one sample in the place of its neighbour, in one micro-batch of one rank."""
    import zero
    from workload.tasks.squad_v2 import SquadV2

    collate = SquadV2.collate

    def twice(self, rows, *args):
        if dist.get_rank() == 1:
            rows = rows.take([0, 0, *range(2, len(rows))])
        return collate(self, rows, *args)

    setattr(SquadV2, "collate", twice)  # noqa: B010  a method of a class
    zero.main()


def dropout_left_on() -> None:
    """The Trainer with a model whose dropouts were not switched off."""
    import hf_trainer
    from workload.tasks.squad_v2 import SquadV2

    build_model = SquadV2.build_model

    def with_dropout(self) -> torch.nn.Module:
        model = build_model(self)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        return model

    setattr(SquadV2, "build_model", with_dropout)  # noqa: B010
    hf_trainer.main()


if __name__ == "__main__":
    mutation = globals()[sys.argv.pop(1)]
    with one_line_errors():
        mutation()

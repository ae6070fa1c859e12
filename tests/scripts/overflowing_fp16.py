"""`bert_baseline.py` with fp16 losses scaled so much that the first gradients overflow."""

from torch.distributed.fsdp import sharded_grad_scaler

import bert_baseline
from workload.errors import one_line_errors


class Overflowing(sharded_grad_scaler.ShardedGradScaler):
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, init_scale=2.0**30, **options)


sharded_grad_scaler.ShardedGradScaler = Overflowing

if __name__ == "__main__":
    with one_line_errors():
        bert_baseline.main()

"""Not a test: `bert_baseline.py` with fp16 losses scaled so much that the first gradients overflow."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.distributed.fsdp import sharded_grad_scaler  # noqa: E402

import bert_baseline  # noqa: E402
from workload.errors import one_line_errors  # noqa: E402

sharded_grad_scaler.ShardedGradScaler = functools.partial(sharded_grad_scaler.ShardedGradScaler, init_scale=2.0**30)

if __name__ == "__main__":
    with one_line_errors():
        bert_baseline.main()

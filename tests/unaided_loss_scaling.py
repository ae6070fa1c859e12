"""Not a test: `zero.py` with fp16's loss scaling left to DeepSpeed's `torch_autocast`, which tests must notice."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zero  # noqa: E402
from workload import optimization  # noqa: E402
from workload.errors import one_line_errors  # noqa: E402

optimization.replace_zero_loss_scaler = lambda zero_optimizer: None

if __name__ == "__main__":
    with one_line_errors():
        zero.main()

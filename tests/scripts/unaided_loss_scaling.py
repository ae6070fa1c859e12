"""`zero.py` with fp16's loss scaling left to DeepSpeed's `torch_autocast`, which tests must notice."""

import zero
from workload import optimization
from workload.errors import one_line_errors

optimization.replace_zero_loss_scaler = lambda zero_optimizer: None

if __name__ == "__main__":
    with one_line_errors():
        zero.main()

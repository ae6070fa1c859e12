"""GPUs for PyTorch's CPU build, so that every branch for CUDA runs in the tests.

    PRETENDED_GPUS=2 DEVICE_COUNTS=counts python -m torch.distributed.run --nproc-per-node 2 \\
        -m tests.pretended_cuda zero.py --sample --model tiny --stage 3
    PRETENDED_GPUS=2 PYTHONPATH=.:tests/pretended_cuda/everywhere python verify.py    # all processes that it starts too

Tensors are real `cuda:N` tensors: CUDA's dispatch key, its autocast lists, its device checks. Memory and kernels are
the CPU's (`device.cpp`), `torch.cuda` answers as a node of H100s does (`torch_cuda.py`), NCCL is gloo
(`collectives.py`). A non-blocking copy into pinned memory arrives late: until the host has waited for the device, or
asked for an event recorded behind the copy, the memory holds NaN. Within measured steps, operations are counted by
name, and what makes the host wait by line (`counting.py`). Attention is one operation, as in CUDA's memory-efficient
kernel.

What this cannot show: NCCL itself; races between streams, except late copies; CUDA's own kernels, of which an operation
may start several; Triton; CUPTI, so profiles hold CPU activities only; NVML.
"""

import os
import sys


def start() -> None:
    """Give this process `PRETENDED_GPUS` GPUs; before anything asks whether there are any."""
    from tests.pretended_cuda import collectives, torch_cuda
    from tests.pretended_cuda.build import load

    torch_cuda.install(load())
    collectives.install()
    if "DEVICE_COUNTS" in os.environ:
        count()


def count() -> None:
    """Count what the GPUs are given to do; see `counting.py`."""
    from tests.pretended_cuda import counting
    from tests.pretended_cuda.build import NAME

    counting.install(sys.modules[NAME], os.environ["DEVICE_COUNTS"])

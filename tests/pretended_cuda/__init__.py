"""GPUs for PyTorch's CPU build, so that every branch for CUDA runs in the tests.

    PRETENDED_GPUS=2 HOST_WAITS=waits python -m torch.distributed.run --nproc-per-node 2 \\
        -m tests.pretended_cuda zero.py --sample --model tiny --stage 3
    PRETENDED_GPUS=2 PYTHONPATH=.:tests/pretended_cuda/everywhere python verify.py    # all processes that it starts too

Tensors are real `cuda:N` tensors: CUDA's dispatch key, its autocast lists, its device checks. Memory and kernels are
the CPU's (`device.cpp`), `torch.cuda` answers as a node of H100s does (`torch_cuda.py`), NCCL is gloo
(`collectives.py`). A non-blocking copy into pinned memory arrives late: until the host has waited for the device, or
asked for an event recorded behind the copy, the memory holds NaN. What makes the host wait within a measured step is
counted by line (`host_waits.py`).

What this cannot show: NCCL itself; races between streams, except late copies; CUDA's own kernels, among them the choice
of an attention kernel; Triton; CUPTI, so profiles hold CPU activities only; NVML.
"""

import os


def start() -> None:
    """Give this process `PRETENDED_GPUS` GPUs; before anything asks whether there are any."""
    from tests.pretended_cuda import collectives, host_waits, torch_cuda
    from tests.pretended_cuda.build import load

    device = load()
    torch_cuda.install(device)
    collectives.install()
    if folder := os.environ.get("HOST_WAITS"):
        host_waits.install(device, folder)

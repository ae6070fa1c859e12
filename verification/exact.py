"""Run a script with deterministic kernels where there are any, and without TF32.

    torchrun --standalone --nproc-per-node 2 -m verification.exact bert_baseline.py --sample --model tiny
"""

import os
import runpy
import sys


def main() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

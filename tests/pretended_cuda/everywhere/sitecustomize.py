"""Gives every Python process pretended GPUs where PYTHONPATH names this folder and the project's; see the package.

Scripts that start others (torchrun, verify.py, experiments/*.sh) need it. `python -c` is left alone: with it Python's
multiprocessing starts its helpers, which need no GPU.
"""

import os
import sys

if os.environ.get("PRETENDED_GPUS") and "-c" not in sys.orig_argv[1:3]:
    from tests import pretended_cuda

    pretended_cuda.start()

"""Run a script on pretended GPUs; see the package."""

import os
import runpy
import sys

from tests import pretended_cuda

pretended_cuda.start()
del sys.argv[0]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")

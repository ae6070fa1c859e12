"""What a script imports before it knows that it will train."""

import subprocess
import sys

import pytest

from tests.shared.runs import ROOT

# Datasets (with pandas and pyarrow), accelerate, SciPy, the models, PyTorch's compiler: seconds, all of them.
NEEDED_IN_A_RUN = {"datasets", "pandas", "pyarrow", "accelerate", "scipy", "deepspeed", "transformers.modeling_utils",
                   "torch._dynamo", "torch._inductor", "torchaudio", "torchvision"}


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", 2)])
@pytest.mark.parametrize("script", ["bert_baseline.py", "zero.py"])
def test_help_and_a_wrong_flag_import_nothing_that_only_a_run_needs(script, flag, code):
    done = subprocess.run([sys.executable, "-X", "importtime", script, flag], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code and {"torch", "transformers"} <= imported
    assert not imported & NEEDED_IN_A_RUN

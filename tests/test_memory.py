"""What a step frees stays with the process, unless the user has settings of their own."""

import os
import platform
import subprocess
import sys

import pytest

from tests.shared.runs import ROOT

# How many pages 256 MiB wait for that were in use, and given back, before; the first some eight times find their place.
PAGES = """
import resource, torch
from workload.malloc import keep_freed_memory

def faults() -> int:
    torch.ones(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
counts = [faults() for _ in range(16)]
print(counts[-1] - counts[-2])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize("settings, is_kept", [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_memory_is_kept_unless_the_user_has_settings(settings, is_kept):
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, env=others | settings, capture_output=True,
                          text=True, check=True)
    assert (int(done.stdout) < 64) == is_kept  # 128 pages at least, were they of the largest kind

"""Compiles `device.cpp`, once for each version of it and of PyTorch."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCES = [Path(__file__).with_name(name) for name in ("device.cpp", "devices.h")]
NAME = "pretended_cuda_device"


def why_not() -> str | None:
    """Why there can be no pretended GPUs here, if so."""
    if torch.version.cuda or torch.version.hip:
        return "pretended GPUs need a build of PyTorch for CPUs"
    return None if _compiler() else "pretended GPUs need a C++ compiler (c++, or what CXX names)"


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def built() -> Path:
    """The compiled device, beside what DeepSpeed compiles; the first call takes half a minute.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    content = b"".join(source.read_bytes() for source in SOURCES) + torch.__version__.encode()
    key = hashlib.sha256(content).hexdigest()[:16]
    folder = Path(sys.prefix, "torch_extensions", NAME)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{key}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two test workers one compiles
        if not library.exists():
            unfinished = library.with_suffix(".unfinished")
            subprocess.run([
                _compiler(), "-shared", "-fPIC", "-std=c++20", "-O1", "-w", f"-DTORCH_EXTENSION_NAME={NAME}",
                "-DTORCH_API_INCLUDE_EXTENSION_H", *(f"-I{path}" for path in include_paths()),
                f"-I{sysconfig.get_path('include')}", str(SOURCES[0]), "-o", str(unfinished),
                *(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"],
                check=True)
            unfinished.rename(library)
    return library


def load() -> ModuleType:
    """The device, in this process."""
    spec = importlib.util.spec_from_file_location(NAME, built())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    return module

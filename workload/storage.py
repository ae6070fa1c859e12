"""Where results go: looked at before anything takes long."""

import os
import sys
from pathlib import Path

import datasets

from workload.arguments import Arguments
from workload.errors import InputError
from workload.tasks.files import HALF_CHARACTER


def check_writable(output_dir: str) -> None:
    """Refuse a folder in which no run's folder can be made.

    Raises:
        InputError: says which part of the path is in the way.
    """
    output = Path(output_dir).absolute()
    place = next(place for place in (output, *output.parents) if os.path.lexists(place))
    if not place.is_dir():
        problem = "is not a folder"
    elif os.access(place, os.W_OK | os.X_OK):
        return
    else:
        is_read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        problem = "is on a read-only file system" if is_read_only else "may not be written to by this user"
    raise InputError(f"--output_dir {output_dir}: {place} {problem}; a folder that can be written to fits")


def check_names(arguments: Arguments) -> None:
    """Refuse names that are not UTF-8 where libraries in Rust and C++ open files. Python itself takes any, as for data.

    Raises:
        InputError: says which flag or variable has such a name.
    """
    names = {f"--{flag} ": getattr(arguments, flag) or "" for flag in ("model", "tokenizer", "output_dir", "run_name")}
    names["HF_HOME, the cache: "] = os.path.abspath(datasets.config.HF_DATASETS_CACHE)
    for name, value in names.items():
        if HALF_CHARACTER.search(value):  # Python's stand-in for a byte that is no text
            raise InputError(f"{name}{value}: this name is not {sys.getfilesystemencoding().upper()} text, and the "
                             "libraries that read and write there take no other; rename it, or use a link to it")

"""Errors that a user can cause: one line that says what is wrong, where, and what would fit; exit code 2."""

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from workload.terminal import print_anywhere

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class InputError(Exception):
    """A flag, a file or a model that cannot be used as it is. Its text is the one line that the user sees."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `InputError`, or a disk that takes nothing more, into one line on stderr and exit code 2.

    Rank 0 (or SLURM's task 0) prints it.
    """
    print_anywhere()
    try:
        yield
    except Exception as error:
        line = str(error) if isinstance(error, InputError) else storage_problem(error)
        is_first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
        if line is None:
            if not is_first:  # mostly a lost connection, as rank 0 is about to end: then the launcher ends this one too
                time.sleep(5)
            raise
        if is_first:
            print("error:", " ".join(line.split()), file=sys.stderr, flush=True)
        else:  # the first to exit makes the launcher end all others, and rank 0 has not spoken yet
            time.sleep(10)
        sys.exit(2)


def storage_problem(error: BaseException, run_folder: Path | None = None) -> str | None:
    """The line for a disk that is full or may not be written to; None for every other error.

    Args:
        run_folder: what was written to, where the error does not know, if that was for a run.
    """
    number, file = getattr(error, "errno", None), getattr(error, "filename", None)
    if written_in_rust := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers, on saving a model
        number, file = int(written_in_rust[1]), run_folder
    if number not in DISK_IS_FULL and not (number in NOT_WRITABLE and file):
        return storage_problem(error.__cause__, run_folder) if error.__cause__ else None
    place = file or run_folder or "a file, most likely of the cache (HF_HOME)"
    remedies = ["make room there"] if number in DISK_IS_FULL else []
    if run_folder and Path(str(place)).is_relative_to(run_folder):
        remedies.append("give another --output_dir")
    return "; ".join(filter(None, [f"{place}: {os.strerror(number)}", ", or ".join(remedies)]))

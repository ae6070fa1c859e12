"""Errors that a user can cause: one line that says what is wrong, where, and what to do; exit code 2."""

import atexit
import contextlib
import errno
import faulthandler
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from workload.launch import launcher
from workload.terminal import print_anywhere

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class InputError(Exception):
    """A flag, a file or a model that cannot be used as it is. Its text is the one line that the user sees."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `InputError`, or a disk that takes nothing more, into one line on stderr and exit code 2.

    Rank 0 prints it. Whatever the exception, this process ends by `end_process`. A crash in a library's native code
    says in which line of Python it happened.
    """
    faulthandler.enable(2)  # stderr itself, whatever takes the place of sys.stderr
    print_anywhere()
    try:
        yield
    except BaseException as error:
        end_process(_report(error))


def _report(error: BaseException) -> int:
    """Print an error's line, or its traceback if the user did not cause it; returns the exit code."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    line = str(error) if isinstance(error, InputError) else storage_problem(error)
    if launcher.rank() != 0 and isinstance(error, Exception):
        # Usually rank 0 met the same error, or its end is why a connection was lost. It reports, and when it has ended
        # the launcher ends this process too. If that does not happen, only this rank knows of the error.
        time.sleep(10 if line else 5)
    if line is None:
        sys.excepthook(type(error), error, error.__traceback__)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    print("error:", " ".join(line.split()), file=sys.stderr)
    return 2


def end_process(exit_code: int) -> NoReturn:
    """End this process without Python's own shutdown.

    That frees objects which threads of libraries still use. About one in eighty finished runs was aborted there
    ("terminate called without an active exception", exit code 134).
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(exit_code)


def storage_problem(error: BaseException, run_folder: Path | None = None) -> str | None:
    """The line for a disk that is full or may not be written to; None for every other error.

    Args:
        run_folder: the run's folder, to be named where the error names no file.
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

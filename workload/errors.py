"""Errors that a user can cause: one line that says what is wrong, where, and what would fit; exit code 2."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator


class InputError(Exception):
    """A flag, a file or a model that cannot be used as it is. Its text is the one line that the user sees."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `InputError` into one line on stderr, printed by rank 0 (or SLURM's task 0) only, and exit code 2."""
    try:
        yield
    except InputError as error:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        else:  # the first to exit makes the launcher end all others, and rank 0 has not spoken yet
            time.sleep(10)
        sys.exit(2)

"""Where results go: looked at before anything takes long."""

import os
from pathlib import Path

from workload.errors import InputError


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

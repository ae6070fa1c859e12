"""The folder of a run: only one process at a time may write to it."""

import fcntl
import shutil
from pathlib import Path

from workload.errors import InputError
from workload.job import Job


class FolderLock:
    """A lock on a run's folder. The operating system releases it when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """

    NAME = ".lock"

    def __init__(self, folder: Path) -> None:
        self.file = open(folder / self.NAME, "a")  # noqa: SIM115  held open until the process ends
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: a running process is writing this run; wait for it, or give another "
                             "--run_name") from None


def claim_folder(job: Job) -> FolderLock:
    """Create and lock the folder of a run. Unless the run is resumed, what is in it is deleted.

    Raises:
        InputError: the folder cannot be written to, or another process is writing a run there.
    """
    folder, output_dir = job.folder, job.arguments.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        if job.checkpoint is None:
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != FolderLock.NAME:
                    path.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: {error.filename}: {error.strerror}; use another "
                         "folder") from error
    return lock

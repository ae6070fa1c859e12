"""Checks the folders of results, caches and temporary files before anything takes long."""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from multiprocess import util

from workload.arguments import Arguments
from workload.errors import InputError

LONGEST_SOCKET = 107  # bytes of a socket's path on Linux
SOCKET = "/pymp-12345678/listener-12345678"  # as multiprocess names them in the temporary folder


def check_writable(folder: Path) -> None:
    """Refuse a run's folder that cannot be made.

    Raises:
        InputError: says which part of the path is in the way.
    """
    if problem := _obstacle(folder.parent):
        raise InputError(f"--output_dir {folder.parent}: {problem}; use a folder that can be written to")
    for part, flag in (*((name, "output_dir") for name in folder.parent.parts), (folder.name, "run_name")):
        if (length := len(os.fsencode(part))) > (longest := _longest_name(folder)):
            raise InputError(f"--{flag}: the name {part[:40]}... has {length} bytes, but this file system allows at "
                             f"most {longest}; use a shorter one")


def check_cache() -> None:
    """Refuse a cache that tokenised data cannot be written to.

    Raises:
        InputError: says which part of the path is in the way, and which environment variable says where it is.
    """
    import datasets.config  # takes a second

    if problem := _obstacle(Path(datasets.config.HF_DATASETS_CACHE)):
        names = [name for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME") if os.environ.get(name)]
        where = f"{names[0]}={os.environ[names[0]]}" if names else "the cache of Hugging Face's libraries"
        raise InputError(f"{where}: {problem}; set {names[0] if names else 'HF_HOME'} to a folder that can be written "
                         "to")


def keep_sockets_short() -> None:
    """Put the sockets of `datasets`' processes elsewhere if the temporary folder's path is too long for them.

    Cluster jobs often have such a TMPDIR. Everything else that is temporary stays there.

    Raises:
        InputError: there is no other temporary folder.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual + SOCKET)) <= LONGEST_SOCKET:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        tempfile.tempdir = folder
        with contextlib.suppress(OSError):
            util.get_temp_dir()  # makes a folder there, and keeps to it
            break
    else:
        raise InputError(f"TMPDIR={usual}: sockets need a temporary folder whose path has at most "
                         f"{LONGEST_SOCKET - len(SOCKET)} bytes; set TMPDIR to one")
    tempfile.tempdir = usual


def extensions_folder() -> str:
    """The folder for DeepSpeed's CPU operation: in this virtual environment, since others would overwrite it.

    Loading it takes a lock in that folder. Where this user may not write to it, as in many containers, it is copied.
    """
    built = os.path.join(sys.prefix, "torch_extensions")
    if os.access(built if os.path.exists(built) else sys.prefix, os.W_OK):
        return built
    folder = tempfile.mkdtemp(prefix="torch_extensions-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.path.exists(built):
        shutil.copytree(built, folder, ignore=shutil.ignore_patterns("lock"), dirs_exist_ok=True)
    return folder


def _nearest(folder: Path) -> Path:
    """The folder itself, or the part of its path that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _longest_name(folder: Path) -> int:
    return os.statvfs(_nearest(folder)).f_namemax


def _obstacle(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not exist yet; None if it can."""
    place = _nearest(folder)
    if not place.is_dir():
        return f"{place} is not a folder"
    if os.access(place, os.W_OK | os.X_OK):
        return None
    is_read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    return f"{place} {'is on a read-only file system' if is_read_only else 'may not be written to by this user'}"


def check_names(arguments: Arguments) -> None:
    """Refuse names that are not UTF-8 where libraries in Rust and C++ open files. Python itself takes any, as for data.

    Raises:
        InputError: says which flag or variable has such a name.
    """
    import datasets.config

    names = {f"--{flag} ": getattr(arguments, flag) or "" for flag in ("model", "tokenizer", "output_dir", "run_name")}
    names["HF_HOME, the cache: "] = os.path.abspath(datasets.config.HF_DATASETS_CACHE)
    for name, value in names.items():
        # Python's stand-ins for bytes that are no text.
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name}{value}: this name is not {sys.getfilesystemencoding().upper()} text, and the "
                             "libraries that read and write there take no other; rename it, or use a link to it")

"""Reading local files: what is wrong with one is said in one line."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workload.errors import InputError


def path_digest(path: str) -> str:
    """SHA-256 of a file, or of a folder's files with their names, so that a change is never mistaken for the cached."""
    if not os.path.isdir(path):
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(each for each in Path(path).rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path)}:{file_digest(str(file))};".encode())
    return digest.hexdigest()


def file_digest(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with readable(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Say in one line why a file cannot be read as UTF-8 text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error

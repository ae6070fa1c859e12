"""Replacing a file as a whole: a reader, or a full disk, finds the old content or the new, never a half."""

import contextlib
import json
import os
from pathlib import Path


def write_json(path: Path, content: dict) -> None:
    """Replace a JSON file; see `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file: write a temporary one beside it, then rename that.

    Raises:
        OSError: names `path`; its old content is untouched, and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # File names may hold bytes that are not UTF-8; their escapes mean the same in JSON.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise

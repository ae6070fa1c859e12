"""A progress bar on a terminal, and messages beside it. Standard error may be closed."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(iterable: Iterable[T], **options) -> Iterable[T]:
    """A bar that vanishes at its end; none where standard error is no terminal."""
    return tqdm(iterable, leave=False, disable=sys.stderr is None or not sys.stderr.isatty(), **options)


def tell(text: str) -> None:
    """Print a line to standard error, above the bar if there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(text, file=sys.stderr)

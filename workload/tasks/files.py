"""Reading local files, with one clear line about whatever is wrong with one."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import fsspec
import zstandard
from tqdm import tqdm

from workload.errors import InputError
from workload.launch import launcher
from workload.models.weights import is_pointer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # possible in JSON and in names of files, but not in UTF-8
MOST_SHOWN = 100  # characters of a file quoted in an error message


def check_path(path: str) -> None:
    """Refuse a path that is missing or unreadable, a git-lfs pointer, or neither a file nor a folder, such as a pipe.

    Raises:
        InputError: names the path and the problem.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path}: neither a file nor a folder")
    with readable(path):
        if os.path.isfile(path) and is_pointer(path):
            raise InputError(f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` there")


def folder_digest(folder: str, files: Iterable[Path]) -> str:
    """SHA-256 of the given files of a folder, names included."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(os.fsencode(f"{file.relative_to(folder)}:{file_digest(str(file))};"))
    return digest.hexdigest()


def file_digest(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with readable(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(text: str) -> str:
    """A text for an error message: quoted, and truncated if it is long."""
    return repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "...")


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn the errors of reading a file as UTF-8 text into an `InputError` that says why it cannot be read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({_undecodable(path)})") from error
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def open_text(path: str, newline: str | None = None) -> Iterator[TextIO]:
    """Open UTF-8 text, with or without a byte order mark, for reading; `.gz` and `.zst` are decompressed.

    Args:
        path: of a local file, or a URL that `fsspec` supports.
        newline: as for `open`.

    Raises:
        InputError: the file cannot be read, now or in the `with` block.
    """
    with readable(path), _unpacked(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline=newline) as text:
        yield text


@contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
    opened: Any = fsspec.open(path) if "://" in path else open(path, "rb")  # local paths contain no "//"
    with opened as packed:
        yield _UNPACK.get(Path(path).suffix.lower(), lambda file: file)(packed)


class _Unzstd(io.RawIOBase):
    """The content of a `.zst` file. Unlike the reader of `zstandard`, this one notices that a file is truncated."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed, self.frame, self.part = packed, None, io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not (count := self.part.readinto(buffer)):
            if not (chunk := self.packed.read(io.DEFAULT_BUFFER_SIZE)):
                if self.frame:
                    raise EOFError("it ends within a frame")
                break
            parts = []
            while chunk:  # the rest of the current frame, then further frames
                self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
                parts.append(self.frame.decompress(chunk))
                chunk, self.frame = self.frame.unused_data, None if self.frame.eof else self.frame
            self.part = io.BytesIO(b"".join(parts))
        return count


_UNPACK: dict[str, Callable[[BinaryIO], Any]] = {  # Any: Python's stubs declare neither a BinaryIO
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed), ".zst": lambda packed: io.BufferedReader(_Unzstd(packed))}


def _undecodable(path: str) -> str:
    """The position of a file's first byte that is not UTF-8: decoding errors count from the start of their chunk."""
    with readable(path), _unpacked(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}"
    return "it changes while it is read"


def parse_json(text: str, path: str, line: int = 1) -> Any:
    """The value of a text in JSON.

    Args:
        path, line: the file, and the line on which the text begins, for error messages.

    Raises:
        InputError: not JSON, or beyond the limits of Python's parser.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{path}: not JSON ({place}: {error.msg})") from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON nested too deeply (what begins in line {line})") from error
    except ValueError as error:  # a limit on integers, see sys.set_int_max_str_digits
        raise InputError(f"{path}: JSON with a number of too many digits (what begins in line {line})") from error


def read_table(path: str, columns: Mapping[str, Sequence[str]], kind: str, synonyms: dict[str, dict[str, Any]],
               **form: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file that are not blank, one at a time.

    Yields:
        The row's position for error messages; its values by the names of `columns`.

    Args:
        columns: name -> headings under which the file may have the column. It may have several of these if they agree
            in each row; an empty cell agrees with any other.
        kind: the kind of files that have such columns, for error messages.
        synonyms: name -> value in lower case -> its meaning; values with the same meaning agree.
        form: options of `csv.reader`.

    Raises:
        InputError: a column is missing, two contradict each other, or a row has more or fewer cells than the first.
    """
    csv.field_size_limit(2**31 - 1)
    with open_text(path, newline="") as file:
        reader = csv.reader(file, **form)
        try:
            # Without blank lines, and the empty rows that a spreadsheet leaves.
            rows = ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
            first, head = next(rows, (1, []))
            missing = [" or ".join(names) for names in columns.values() if not set(names) & set(head)]
            if missing:
                raise InputError(f"{path}: line {first} has no column {', '.join(missing)}, as {kind} have; it is "
                                 f"{shown(form.get('delimiter', ',').join(head))}")
            found = {name: {column: head.index(column) for column in names if column in head}
                     for name, names in columns.items()}
            for column in itertools.chain(*found.values()):
                if head.count(column) > 1:
                    raise InputError(f"{path}: line {first} has the column {column} more than once")
            for number, row in rows:
                place = f"{path}: line {number}"
                if len(row) != len(head):
                    raise InputError(f"{place}: has {len(row)} columns, not {len(head)} as the first line")
                yield place, {name: _agreed(place, {column: row[index] for column, index in indices.items()},
                                            synonyms.get(name, {})) for name, indices in found.items()}
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def _agreed(place: str, cells: dict[str, str], synonyms: dict[str, Any]) -> str:
    """The value that columns with the same meaning have in a row. `cells`: heading -> cell"""
    first, *others = [column for column, cell in cells.items() if cell.strip()] or cells
    for other in others:
        one, two = (synonyms.get(cell.lower(), cell) for cell in (cells[first].strip(), cells[other].strip()))
        if one != two:
            raise InputError(f"{place}: {first} is {shown(cells[first])}, but {other} is {shown(cells[other])}; remove "
                             "one of these columns")
    return cells[first]


def read_some(read: Callable[..., Iterator[dict]], example_word: str, reading: dict) -> Iterator[dict]:
    """The examples that `read` yields, at least one, with a progress bar if it takes long.

    Args:
        reading: keyword arguments for `read`.

    Raises:
        InputError: there are no examples.
    """
    example = None
    for example in tqdm(read(**reading), desc=f"reading {os.path.basename(reading['path'])}", unit="examples",
                        leave=False, delay=1, disable=launcher.rank() != 0):
        yield example
    if example is None:
        raise InputError(f"{reading['path']}: holds no {example_word}")

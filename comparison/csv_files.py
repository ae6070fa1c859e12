"""Read CSV files as a run writes them and as spreadsheets and editors save them again, torn ones included."""

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from comparison.progress import tell
from measurement.columns import COMPLETE, YES

SMALLEST, LARGEST = 1e-30, 1e30  # range of usable numbers: their sums, squares and ratios fit into a float
LARGEST_WHOLE = 1e9
MOST_SHOWN = 100
EMPTY = {"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"}  # cells that mean no value, in lower case
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+(e[+-]?\d+)?)", re.ASCII | re.IGNORECASE)


def shown(value: object) -> str:
    """A value for an error message, shortened if it is long."""
    return repr(value)[:MOST_SHOWN]


def read_columns(path: Path, drop_torn: bool = False) -> dict[str, list[str]]:
    """The cells of a CSV file by column, as text. The separator may be a comma, a semicolon or a tab.

    A file is whole if it ends with a line break, or if its last column is `complete` and says yes. Otherwise it may
    have been cut inside its last number, which would then be read as another number.

    Args:
        drop_torn: leave out a last row without a line break and say so on standard error; otherwise refuse a cut file.

    Raises:
        ValueError: the file cannot be read, is cut off or has a column twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        is_ended = text.endswith(("\n", "\r"))
        if drop_torn and not is_ended:
            tell(f"{path}: its last row is cut off and is left out")
            text = text[:max(text.rfind("\n"), text.rfind("\r")) + 1]
            if not text.strip():
                return {}
        head, *rows = _cells(text)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    names = [name for name in head if name]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path.name} has the column {shown(repeated[0])} more than once")

    is_marked = head[-1] == COMPLETE
    is_torn = any(len(row) < len(head) or is_marked and row[-1].lower() != YES for row in rows)
    if not drop_torn and (is_torn or not is_marked and not is_ended):
        raise ValueError(f"{path.name} is cut off inside a row; copy it again, or, if nothing is missing, fill the row "
                         "up to its last column and end it with a line break")
    columns = zip(*(row + [""] * (len(head) - len(row)) for row in rows), strict=True) if rows else [()] * len(head)
    return {name: list(cells) for name, cells in zip(head, columns, strict=True) if name}


def read_table(path: Path) -> pd.DataFrame:
    """What `read_columns` reads, NaN for empty cells."""
    columns = read_columns(path)
    return pd.DataFrame({name: [np.nan if is_empty(cell) else cell for cell in cells]
                         for name, cells in columns.items()}, dtype=object)


def is_empty(cell: str) -> bool:
    """Whether a cell of a CSV file has no value."""
    return cell.lower() in EMPTY


def _cells(text: str) -> list[list[str]]:
    """The rows of a CSV file that are not empty. Later rows may be shorter than the first, but not longer."""
    first = text.lstrip().split("\n")[0]
    separator = max(",;\t", key=first.count)
    rows, reader = [], csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    for row in reader:
        row = [cell.strip() for cell in row]
        width = len(rows[0]) if rows else 0
        while len(row) > width and not row[-1]:
            row.pop()
        if rows and len(row) > width:
            raise ValueError(f"line {reader.line_num} has {len(row)} cells, the first has {width}")
        if any(row):
            rows.append(row)
    if not rows:
        raise ValueError("it is empty")
    return rows if separator == "," else _with_decimal_points(rows)


def _with_decimal_points(rows: list[list[str]]) -> list[list[str]]:
    """The rows with 48,7 rewritten as 48.7, unless some number has a point: then a comma may separate thousands."""
    if any("." in cell and NUMBER.fullmatch(cell) for row in rows for cell in row):
        return rows
    return [[DECIMAL_COMMA.sub(r"\1.\2", cell) if DECIMAL_COMMA.fullmatch(cell) else cell for cell in row]
            for row in rows]


def as_number(text: str, name: str, file: str, whole: bool = False, smallest: int = 1) -> float:
    """Convert the text of a cell to a number; NaN if it is empty.

    Args:
        name: of the column.
        whole: accept only whole numbers from `smallest` on; 4.0 and 1E+02 are whole as well.

    Raises:
        ValueError: names the file, the column and the value if it is not a usable number.
    """
    if NUMBER.fullmatch(text):
        number = float(text)
        is_usable = number == 0 or SMALLEST <= abs(number) <= LARGEST
        if is_usable and (not whole or smallest <= number <= LARGEST_WHOLE and number.is_integer()):
            return number
    elif is_empty(text):
        return math.nan
    raise ValueError(f"{file}: {name} is {shown(text)}, not a usable number")


def as_numbers(values: pd.Series, file: str, whole: bool = False) -> pd.Series:
    """Convert a column of text to numbers as `as_number` does, NaN staying NaN."""
    return values.map(lambda text: as_number(text, str(values.name), file, whole),
                      na_action="ignore").astype(float)

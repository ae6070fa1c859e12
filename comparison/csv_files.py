"""Read CSV files as a run writes them and as spreadsheets and editors save them again, torn ones included."""

import csv
import io
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

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


def read_table(path: Path, drop_torn: bool = False) -> pd.DataFrame:
    """The cells of a CSV file as text, NaN for empty ones. The separator may be a comma, a semicolon or a tab.

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
            print(f"{path}: its last row is cut off and is left out", file=sys.stderr)
            text = text[:max(text.rfind("\n"), text.rfind("\r")) + 1]
            if not text.strip():
                return pd.DataFrame()
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
    rows = [row + [""] * (len(head) - len(row)) for row in rows]
    table = pd.DataFrame(rows, columns=head, dtype=object)[names]
    return table.mask(table.map(lambda cell: cell.lower() in EMPTY))


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


def as_numbers(values: pd.Series, file: str, whole: bool = False, smallest: int = 1) -> pd.Series:
    """Convert text to numbers, NaN staying NaN.

    Args:
        whole: accept only whole numbers from `smallest` on; 4.0 and 1E+02 are whole as well.

    Raises:
        ValueError: names the file, the column and the first value that is not a usable number.
    """
    numbers = values.map(lambda text: float(text) if NUMBER.fullmatch(text) else np.nan, na_action="ignore")
    numbers = numbers.astype(float)
    found, sizes = numbers.to_numpy(), numbers.abs().to_numpy()
    usable = (sizes >= SMALLEST) & (sizes <= LARGEST) | (sizes == 0)
    if whole:
        usable &= (found >= smallest) & (found <= LARGEST_WHOLE) & (np.floor(found) == found)
    if len(wrong := values[values.notna().to_numpy() & ~usable]):
        raise ValueError(f"{file}: {values.name} is {shown(wrong.iloc[0])}, not a usable number")
    return numbers

"""CSV tables that a run writes row by row, and truncates when it is resumed from a checkpoint."""

import csv
import io
from pathlib import Path

from workload.atomic_files import write_text


class Table:
    """A CSV file written row by row; None is an empty field. On a full disk the file still ends with a whole row.

    Args:
        append: add to the rows that are there already, rather than start a new file.
    """

    def __init__(self, path: Path, columns: list[str], append: bool = False) -> None:
        # Unbuffered: a buffer would keep part of a row that failed, and write it later.
        self.file = open(path, "ab" if append else "wb", buffering=0)
        self.row = io.StringIO()
        self.writer = csv.DictWriter(self.row, columns, restval="", lineterminator="\n")
        if not append:
            self.writer.writeheader()
            self._write_row()

    def add(self, **row) -> None:
        """Write a row.

        Raises:
            OSError: the row could not be written, and no part of it was.
        """
        self.writer.writerow({name: "" if value is None else value for name, value in row.items()})
        self._write_row()

    def _write_row(self) -> None:
        rest, end = self.row.getvalue().encode(), self.file.tell()
        self.row.seek(0)
        self.row.truncate()
        try:
            while rest:
                rest = rest[self.file.write(rest):]  # a nearly full disk accepts only part of it
        except OSError as error:
            self.file.truncate(self.file.seek(end))
            error.filename = self.file.name
            raise

    def close(self) -> None:
        self.file.close()


def truncate_after(path: Path, last_step: int | None) -> list[dict[str, str]]:
    """Remove the rows of later steps, and a last row that was cut off, from a table; returns the rows that remain.

    Args:
        last_step: None removes the cut-off row only.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.readlines()
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    rows = list(csv.DictReader(lines))
    kept = sum(last_step is None or int(row["step"]) <= last_step for row in rows)
    write_text(path, "".join(lines[:1 + kept]))
    return rows[:kept]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

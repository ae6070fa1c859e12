"""Whether `verify.py` proved a table's rows equal to one device, with the same code, on the same hardware."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from comparison.progress import tell
from comparison.study import LIBRARIES
from verification.records import EQUAL, NAME, read_verifications
from workload.errors import InputError

SAME = ("source_digest", *LIBRARIES, "hardware", "family")
IDENTITY = ("strategy", "pipeline_stages", "schedule", "replicas")  # and the number of devices
ONE_DEVICE = ("ddp", "1", "")  # the reference


def find_verifications(root: Path) -> list[dict[str, Any]]:
    """The entries of every verification.json in or below `root`, or beside it; a broken file is named and left out."""
    found = []
    for path in sorted({*root.rglob(NAME), root.absolute().parent / NAME}):
        try:
            found += read_verifications(path.parent)
        except InputError as error:
            tell(f"left out: {error}")
    return found


def verified(group: pd.DataFrame, entries: Sequence[dict[str, Any]]) -> str:
    """A sentence above the table of a group: when its rows were verified, and which were not."""
    known = [entry for entry in entries if any(_matches(row, entry) for _, row in group.iterrows())]
    if not known:
        return ("Not verified: `verify.py` was not run with this code and these versions, on this hardware, with this "
                "family of models.")
    problems = {row["setting"]: _problem(row, known) for _, row in group.iterrows()}
    wrong = "; ".join(f"{name} ({problem})" for name, problem in problems.items() if problem)
    dates = " and ".join(sorted({entry["date"] for entry in known}))
    return f"Verified by `verify.py` on {dates}, without dropout, with a model of this family: " + (
        f"all but {wrong}." if wrong else "every row trains as one device does.")


def _matches(row: pd.Series, entry: dict[str, Any]) -> bool:
    """Whether an entry is of a row's code, versions, hardware and family of models."""
    return bool(_text(row["source_digest"])) and all(_text(row[name]) == _text(entry[name]) for name in SAME)


def _problem(row: pd.Series, entries: list[dict[str, Any]]) -> str | None:
    """What keeps a row from being verified; None for nothing."""
    mine = tuple(_text(row.get(name)) for name in IDENTITY)
    entries = sorted((entry for entry in entries if _matches(row, entry)), key=lambda entry: entry["date"])
    if not entries:
        return "other code or hardware"
    if row["devices"] == 1 and mine[:3] == ONE_DEVICE:
        return None
    found = [proven for entry in entries if entry["devices"] == row["devices"] for proven in entry["rows"]
             if tuple(_text(proven.get(name, row.get(name))) for name in IDENTITY) == mine]  # older ones lack replicas
    if not found:
        return "not among the settings that were run"
    return None if found[-1]["status"] == EQUAL else f"{found[-1]['status']}: {found[-1]['reason']}"


def _text(value: object) -> str:
    """A value as run files and pandas both give it: whole numbers without a point, nothing for what is missing."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

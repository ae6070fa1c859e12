"""verification.json in a results folder: what was verified, with which code, on which hardware, and what came of it."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workload.atomic_files import write_json
from workload.errors import InputError

if TYPE_CHECKING:  # plots.py reads the file, and has no use for torch
    from verification.compare import Computation
    from verification.proof import Row

NAME = "verification.json"
EQUAL = "equal"  # the status of a setting that computes what one device does
KEY = ("source_digest", "torch", "transformers", "deepspeed", "hardware", "family", "task", "devices")


def verification(task: str, devices: int, reference: "Computation", hardware: str, limits: dict[str, float],
                 rows: "list[Row]") -> dict[str, Any]:
    """An entry of verification.json; code and versions are those of the reference run.

    Args:
        hardware: as runs here record it. The reference's own has the settings that make its kernels deterministic.
    """
    recorded = ("source_digest", "commit", "dirty", "torch", "transformers", "deepspeed", "model")
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), **{name: reference.summary[name] for name in recorded},
            "hardware": hardware, "family": reference.family, "task": task, "devices": devices, "limits": limits,
            "rows": [row.as_json() for row in rows]}


def read_verifications(folder: Path) -> list[dict[str, Any]]:
    """The entries of verification.json; none without the file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return content["verifications"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / NAME} cannot be read; remove it, and run verify.py again") from error


def is_proven(folder: Path, **key: Any) -> bool:
    """Whether verification.json has an entry with these values, of some or all of `KEY`, with every setting equal."""
    return any(all(str(entry.get(name)) == str(key[name]) for name in KEY if name in key)
               and all(row["status"] == EQUAL for row in entry["rows"]) for entry in read_verifications(folder))


def add_verification(folder: Path, entry: dict[str, Any], machine: dict[str, Any], links: dict[str, Any]) -> Path:
    """Write an entry to verification.json, replacing an earlier one of the same code, hardware, model and task.

    Args:
        machine, links: as measured on this machine; they stand in the entry.
    """
    key = [entry[name] for name in KEY]
    others = [earlier for earlier in read_verifications(folder) if [earlier.get(name) for name in KEY] != key]
    path = folder / NAME
    write_json(path, {"verifications": [*others, entry | {"machine": machine, "links": links}]})
    return path

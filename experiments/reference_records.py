"""Helper of reference.sh: estimate how long its runs take, and replace the records in results/reference/ with them.

    python -m experiments.reference_records estimate RUNS PART...     # RUNS: folder with a folder of runs per part
    python -m experiments.reference_records replace RUNS PART...
"""

import json
import re
import shutil
import sys
from pathlib import Path

from comparison.autotuning import SUMMARY, read_summary
from comparison.runs import folders_below
from measurement.table import read_rows
from verification.records import add_verification, read_verifications

REFERENCE = Path("results/reference")
TUNING_TIME = re.compile(r"Tuning completed in (\d+):(\d+):(\d+)")


def records_of(part: str) -> Path:
    return REFERENCE / f"{part}_cpu_2_cores"


def runs_below(root: Path) -> dict[str, Path]:
    """Folders with a run, by run name."""
    found: dict[str, Path] = {}
    for folder, files in folders_below(root):
        if "run.json" in files:
            name = json.loads((folder / "run.json").read_text())["run_name"]
            if name in found:
                sys.exit(f"error: {folder} and {found[name]} have one run name, {name}; nothing was replaced")
            found[name] = folder
    return found


def seconds_of(root: Path) -> float:
    """Seconds of all finished runs below root, and of the trials of an autotuner."""
    seconds = 0.0
    for folder, files in folders_below(root):
        if "run.json" in files and "summary.csv" in files:
            seconds += sum(float(row["runtime_s"]) for row in read_rows(folder / "summary.csv"))
        if SUMMARY in files and (found := TUNING_TIME.search((folder / SUMMARY).read_text())):
            hours, minutes, rest = map(int, found.groups())
            seconds += 3600 * hours + 60 * minutes + rest
    return seconds


def estimate(runs: Path, parts: list[str]) -> None:
    """Print how long the parts will take, from the records that they replace, less what has been run already."""
    minutes = {}
    for part in parts:
        is_finished = (runs / f"{part}.finished").exists()
        left = 0 if is_finished else seconds_of(records_of(part)) - seconds_of(runs / part)
        minutes[part] = max(left, 0) / 60
    each = ", ".join(f"{part} {count:.0f}" for part, count in minutes.items())
    print(f"about {sum(minutes.values()):.0f} minutes on the machine of the records it replaces ({each}); besides, "
          "verify.py (some twenty minutes) and figures", flush=True)


def problem_of(folder: Path, commit: str) -> str | None:
    """Why a run cannot become a record, or None."""
    description = json.loads((folder / "run.json").read_text())
    git = description.get("git") or {}
    if description["status"] != "finished":
        return f"its status is {description['status']}"
    if git.get("dirty") or not git.get("commit", "").startswith(commit):
        return "the tree was changed meanwhile; delete this folder, check out the commit and start again"
    return None


def replace(runs: Path, parts: list[str]) -> None:
    """Replace the records of the parts. A run with the run name of a record takes over its folder's name and files."""
    found = {part: runs_below(runs / part) for part in parts}
    for part, folders in found.items():
        problems = [f"{folder}: {problem}" for folder in folders.values() if (problem := problem_of(folder, runs.name))]
        if problems or not folders:
            sys.exit(f"error: {problems[0] if problems else f'{runs / part} has no run'}; nothing was replaced")
    for entry in read_verifications(runs):
        add_verification(REFERENCE, entry, entry["machine"], entry["links"])
    for part, folders in found.items():
        records = records_of(part)
        old = runs_below(records)
        kept = {name: {path.name for path in folder.iterdir()} for name, folder in old.items()}
        shutil.rmtree(records, ignore_errors=True)
        for name, folder in folders.items():
            record = old.get(name, records / name)
            record.mkdir(parents=True)
            for path in folder.iterdir():
                if path.suffix == ".csv" or path.name in {"run.json", *kept.get(name, ())}:
                    shutil.copy(path, record)
        for folder, files in folders_below(runs / part):
            if SUMMARY in files:
                copy_trials(folder, records / "trials")
        print(f"{records}: {len(folders)} records")


def copy_trials(folder: Path, records: Path) -> None:
    """Copy what plots.py reads of an autotuner's results: its summary, and the settings it found best."""
    for name in (SUMMARY, "ds_config_optimal.json",
                 *(f"{name}/ds_config.json" for name in read_summary(folder)["best_experiment"])):
        (records / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, records / name)


if __name__ == "__main__":
    action, runs, *parts = sys.argv[1:]
    {"estimate": estimate, "replace": replace}[action](Path(runs), parts)

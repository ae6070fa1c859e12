"""Helper of on_gpu.sh, and the check of a folder with runs on a GPU before it becomes a record.

    python -m experiments.gpu_records check FOLDER     # every reason why it cannot become one
    python -m experiments.gpu_records copy FOLDER      # check, then copy its CSVs and JSONs to results/reference/

on_gpu.sh asks for `gpu` (what the GPUs here offer), `inputs FOLDER` (flags that name model and data) and
`verified FOLDER DEVICES` (exit code 0: verify.py has proven all settings here, with this code).
"""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from comparison.runs import folders_below
from comparison.verified import verified
from experiments.gpu_inputs import write_inputs
from measurement.columns import COMPLETE, YES
from measurement.environment import source_digest, versions
from measurement.table import read_rows
from verification.host import HubCheck
from verification.records import NAME, is_proven, read_verifications
from workload.errors import InputError, one_line_errors

REFERENCE = Path("results/reference")
ALL_PROVEN = "every row trains as one device does."
INPUTS = "inputs"  # folder beside the runs
FROM_HUB = ["--model", "bert-base-uncased", "--max_train_examples", "6000"]
MOST_SAMPLES = 64  # in a forward pass
GIB_A_SAMPLE, GIB_BESIDES = 0.5, 3  # BERT-base in fp32 at 384 tokens without a fused kernel: activations; the rest


def folder_name(hardware: str) -> str:
    """The folder for runs on this hardware: the GPUs' names without the user's settings of libraries."""
    return re.sub(r"[^a-z0-9]+", "_", hardware.split(", ")[0].lower()).strip("_")


def gpu() -> str:
    """Name of the folder, GPUs (a power of two), short precision, samples that fit a forward pass.

    Raises:
        InputError: PyTorch finds no GPU.
    """
    import torch

    from verification.gpus import describe_gpus
    from verification.machine import hardware_name

    found = describe_gpus()
    if not found["gpus"]:
        raise InputError(f"on_gpu.sh needs a GPU: {found['no_gpu']}; on a CPU: SAMPLE=1 bash experiments/bert_squad.sh")
    devices = 2 ** (len(found["gpus"]).bit_length() - 1)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    memory = min(gpu["gpu_memory_gib"] for gpu in found["gpus"])
    samples = MOST_SAMPLES
    while samples > 1 and GIB_BESIDES + samples * GIB_A_SAMPLE > memory:
        samples //= 2
    return f"{folder_name(hardware_name(devices))} {devices} {'bf16' if has_bf16 else 'fp16'} {samples}"


def inputs(folder: Path) -> str:
    """Flags that name model and data: the Hub's, or made-up ones where it cannot be reached. Decided once a folder."""
    decided = folder / INPUTS / "flags.json"
    if not decided.exists():
        hub = HubCheck().answer()["state"]
        flags = FROM_HUB if hub == "can be reached" else write_inputs(folder / INPUTS)
        decided.parent.mkdir(parents=True, exist_ok=True)
        decided.write_text(json.dumps(flags), encoding="utf-8")
    return shlex.join(json.loads(decided.read_text(encoding="utf-8")))


def is_verified(folder: Path, devices: int) -> bool:
    """Whether verify.py has proven all settings on so many devices of this machine, with this code."""
    from verification.machine import hardware_name

    return is_proven(folder, source_digest=source_digest(), hardware=hardware_name(devices), devices=devices,
                     **versions())


def problems_of(folder: Path) -> list[str]:
    """Why the runs in a folder cannot become a record."""
    runs, problems = {}, []
    for run, files in folders_below(folder):
        if {"run.json", "summary.csv"} & files and INPUTS not in run.relative_to(folder).parts:
            try:
                runs[run.name] = _read_run(run)
            except (OSError, ValueError, LookupError, TypeError) as error:
                problems.append(f"{run.name}: {error}")
    if not runs and not problems:
        return ["it has no run"]
    for column in ("source_digest", "hardware"):
        found = sorted({row[column] for row in runs.values()})
        if len(found) > 1:
            problems.append(f"its runs have {len(found)} values of {column}: {'; '.join(found)}")
    for hardware in sorted({row["hardware"] for row in runs.values()}):
        if folder_name(hardware) != folder.absolute().name:
            problems.append(f"its runs are on {hardware}, so its name must be {folder_name(hardware)}")
    try:
        entries = read_verifications(folder)
    except InputError as error:
        return [*problems, str(error)]
    if not entries:
        return [*problems, f"it has no {NAME}; run verify.py with --output_dir {folder}"]
    said = verified(pd.DataFrame(list(runs.values())), entries)
    return problems if said.endswith(ALL_PROVEN) or not runs else [*problems, said]


def _read_run(folder: Path) -> dict[str, Any]:
    """The row of a run's summary.csv, with the model's family, and its folder's name as its setting.

    Raises:
        ValueError: it is not finished, or not of a clean commit.
    """
    run_json = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if run_json["status"] != "finished":
        raise ValueError(f"its status is {run_json['status']}")
    [row] = read_rows(folder / "summary.csv")
    if row[COMPLETE] != YES:
        raise ValueError("summary.csv was cut off")
    if not re.fullmatch("[0-9a-f]{40}", row["commit"]) or row["dirty"] == YES:
        raise ValueError("it was not run from a commit without changes on top of it")
    return row | {"family": run_json["model"]["family"], "devices": int(row["devices"]), "setting": folder.name}


def check(folder: Path) -> None:
    """Exit with every problem of a folder, if it has any."""
    if problems := problems_of(folder):
        sys.exit("\n".join(f"{folder}: {problem}" for problem in problems))


def copy(folder: Path) -> None:
    """Check a folder, and copy what a record has: the CSVs and run.json of each run, and verification.json."""
    check(folder)
    record = REFERENCE / folder.absolute().name
    shutil.rmtree(record, ignore_errors=True)
    for place, files in folders_below(folder):
        for name in files:
            if name == NAME or "run.json" in files and (name.endswith(".csv") or name == "run.json"):
                (record / place.relative_to(folder)).mkdir(parents=True, exist_ok=True)
                shutil.copy(place / name, record / place.relative_to(folder))
    print(record)


def main() -> None:
    action, *words = sys.argv[1:]
    folder = Path(words[0]) if words else Path()
    if action == "gpu":
        print(gpu())
    elif action == "inputs":
        print(inputs(folder))
    elif action == "verified":
        sys.exit(not is_verified(folder, int(words[1])))
    else:
        {"check": check, "copy": copy}[action](folder)


if __name__ == "__main__":
    with one_line_errors():
        main()

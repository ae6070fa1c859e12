"""Runs every setting and compares it with one device. What cannot run is named with its reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from verification.compare import Computation, Difference, differences, limits
from verification.records import EQUAL
from verification.settings import EXACT, PROJECT, Setting, batch_flags
from workload.errors import InputError

DIFFERS = "differs"
CANNOT_START, HANGS, OUT_OF_MEMORY, FAILS = "cannot start", "hangs", "out of memory", "fails"
MEMORY_A_PARAMETER = 16  # bytes: parameter, gradient and Adam's two moments in fp32


@dataclass(frozen=True)
class Row:
    """What came of one setting."""

    setting: Setting
    status: str  # one of the words above
    reason: str = ""
    differences: dict[str, Difference] = field(default_factory=dict)  # by quantity
    identity: dict[str, Any] = field(default_factory=dict)  # columns of summary.csv that name the strategy

    def as_json(self) -> dict[str, Any]:
        return {"name": self.setting.name, "status": self.status, "reason": self.reason, **self.identity,
                "differences": {name: [each.relative, each.where] for name, each in self.differences.items()}}


class Proof:
    """Runs settings in a folder of their own, which is emptied as it goes.

    Args:
        folder: for the runs.
        devices: how many all settings use, but for the references.
        flags: task, model and data.
        limit_s: seconds after which a setting hangs.
    """

    def __init__(self, folder: Path, devices: int, flags: tuple[str, ...], limit_s: float) -> None:
        self.folder, self.devices, self.flags, self.limit_s = folder, devices, flags, limit_s
        self.references: dict[int, Computation] = {}  # by the size of their micro-batches
        self.limits: dict[str, float] = {}

    def run_reference(self, setting: Setting) -> Computation:
        """Train on one device.

        Raises:
            InputError: it cannot be run.
        """
        if failure := self._run(setting):
            raise InputError(f"{setting.name} {failure.status}: {failure.reason}")
        computation = Computation(self._folder_of(setting))
        self.references[setting.micro_batch_size] = computation
        self.limits = limits(list(self.references.values()))
        return computation

    def row(self, setting: Setting) -> Row:
        """Train with a strategy, and compare."""
        if failure := self._run(setting):
            return failure
        row = self._compared(setting)
        if row.status == EQUAL:
            shutil.rmtree(self._folder_of(setting))
        return row

    def _compared(self, setting: Setting) -> Row:
        run = Computation(self._folder_of(setting))
        found = differences(run, self.references[setting.micro_batch_size])
        beyond = {name: each for name, each in found.items() if each.exceeds(self.limits[name])}
        reason = ", ".join(f"{name} {each.in_words(self.limits[name])}" for name, each in beyond.items())
        identity = {name: run.summary[name] for name in ("strategy", "devices", "replicas", "pipeline_stages",
                                                       "schedule")}
        return Row(setting, DIFFERS if beyond else EQUAL, reason, found, identity)

    def _folder_of(self, setting: Setting) -> Path:
        return self.folder / setting.name.replace(" ", "_")

    def check_room(self, first: Computation, references: int) -> None:
        """Refuse a disk or a memory that is too small for what follows the first reference.

        Args:
            references: runs whose weights are kept.

        Raises:
            InputError: says how much is missing.
        """
        size = sum(path.stat().st_size for path in (first.folder / "model").glob("*.safetensors"))
        needed, free = references * size, shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(f"--output_dir: the weights that are compared need {needed / 2**30:.1f} GiB, but "
                             f"{free / 2**30:.1f} GiB are free there; use another folder")
        ranks = first.run_json["ranks"]
        on_cpu = all(device["gpu"] is None for rank in ranks for device in rank["devices"])
        needed = self.devices * first.run_json["parameters"] * MEMORY_A_PARAMETER
        available = psutil.virtual_memory().available
        if on_cpu and needed > available:
            raise InputError(f"--num_gpus {self.devices}: {self.devices} copies of the model and its optimizer need "
                             f"{needed / 2**30:.0f} GiB of memory, but {available / 2**30:.0f} GiB are free; use "
                             "fewer devices or a smaller model")

    def _run(self, setting: Setting) -> Row | None:
        """Train; a row only if that failed."""
        run_folder = self._folder_of(setting)
        command, environment = torchrun(
            setting.processes, "verification.exact", str(PROJECT / setting.script), *setting.flags, *EXACT,
            *batch_flags(self.devices), *self.flags, "--output_dir", str(self.folder), "--run_name", run_folder.name,
            "--overwrite")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env=environment, start_new_session=True, errors="replace")
        try:
            output, _ = process.communicate(timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            return Row(setting, HANGS, f"no end within {self.limit_s:.0f} s")
        finally:
            if process.poll() is None:  # it hangs, or we are told to stop
                _end(process)
        return Row(setting, *_why(run_folder, output)) if process.returncode else None


def torchrun(processes: int, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that start a module of this project in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m",
               module, *arguments]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return command, {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


def measured(processes: int, module: str, quiet: bool) -> dict[str, Any]:
    """What a module writes that measures in so many processes.

    Args:
        quiet: what it prints is not shown.

    Raises:
        InputError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "measured.json")
        command, environment = torchrun(processes, module, str(path))
        if subprocess.run(command, env=environment, capture_output=quiet).returncode:
            advice = "run verify.py" if quiet else "see above"
            raise InputError(f"--num_gpus {processes}: the devices cannot exchange data on this machine; {advice}")
        return json.loads(path.read_text(encoding="utf-8"))


def _why(run_folder: Path, output: str) -> tuple[str, str]:
    """Status and reason of a run that failed."""
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = (errors or lines[-1:] or ["no word"])[0]
    try:
        run_json = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return CANNOT_START, said
    if run_json["status"] == "out_of_memory":
        return OUT_OF_MEMORY, said
    return FAILS, run_json["reason"] or said


def _end(process: subprocess.Popen) -> None:
    """Kill a launcher and all that it started."""
    for child in psutil.Process(process.pid).children(recursive=True):  # torchrun's are in sessions of their own
        child.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

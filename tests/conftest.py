"""Real runs of the scripts, in real processes, on the embedded sample; each is made once and shared by the tests.

The tests are spread over two workers (pytest-xdist, in pyproject.toml), since most of a run's time is waiting.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm_ranks import run_ranks
from workload.launch import launcher

ROOT = Path(__file__).resolve().parents[1]
# A short job on which every clipping is active, batches differ in length, and nothing is random but the order.
EXACT = ["--sample", "--model", "tiny", "--max_seq_length", "128", "--max_steps", "8", "--global_batch_size", "32",
         "--micro_batch_size", "4", "--learning_rate", "3e-5", "--warmup_steps", "0", "--max_grad_norm", "3.0",
         "--dropout", "0", "--cpu_threads", "1", "--noise_scale_steps", "1", "--max_eval_examples", "50",
         "--precision", "fp32", "--save_model", "--checkpoint_steps", "3"]


class FinishedRun:
    """What a run left behind."""

    def __init__(self, folder: Path, output: subprocess.CompletedProcess) -> None:
        self.folder, self.output = folder, output

    @property
    def description(self) -> dict:
        return json.loads((self.folder / "run.json").read_text())

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / name, newline="") as file:
            return list(csv.DictReader(file))

    def column(self, name: str) -> list[float]:
        """Of steps.csv."""
        return [float(row[name]) for row in self.rows("steps.csv")]

    @property
    def summary(self) -> dict[str, str]:
        return self.rows("summary.csv")[0]

    def host_waits(self) -> list[list[dict]]:
        """On pretended GPUs: for each rank what made its host wait in measured steps (pretended_cuda/host_waits.py)."""
        return [json.loads(path.read_text())["waits"] for path in sorted(self.folder.glob("host_waits/rank*.json"))]

    def weights(self) -> dict:
        from safetensors.torch import load_file
        return load_file(self.folder / "model" / "model.safetensors")


def stray_lines(output: subprocess.CompletedProcess) -> list[str]:
    """What a run printed besides its bars and one closing line."""
    lines = output.stderr.replace("\x1b[A", "").replace("\r", "\n").splitlines() + output.stdout.splitlines()[:-1]
    return [line for line in lines if line.strip() and "%|" not in line and "examples/s" not in line]


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Wait until no other worker is in here with the same file."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory) -> Path:
    """One for all workers of this session: each has its temporary folders inside the session's."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(autouse=True)
def _alone(request, common_folder):
    """What is marked `alone` begins when the other workers' tests have ended, and they wait until it has."""
    is_alone = request.node.get_closest_marker("alone") is not None
    with open(common_folder / "turn.lock", "w") as turn, open(common_folder / "tests.lock", "w") as tests:
        fcntl.flock(turn, fcntl.LOCK_EX)  # held while waiting, so that nothing else begins meanwhile
        fcntl.flock(tests, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What `datasets` caches in the tests' own process goes to a folder of theirs, not to the user's."""
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture
def launched(monkeypatch):
    """Set the variables of a launcher that started 2 processes, changed as told, in an otherwise bare environment."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_")) or name in launcher.VARIABLES:
            monkeypatch.delenv(name)

    def launched(**changed: str | None) -> None:
        variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": "29500"} | changed
        for name, value in variables.items():
            if value is not None:
                monkeypatch.setenv(name, value)
    return launched


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """No network, a cache of our own, and the commands of the virtual environment, not yet on a new shell's path.

    And DeepSpeed's operation as it was installed, also for what does not come by way of the scripts' `launch`.
    """
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hugging_face")),
                         "TORCH_EXTENSIONS_DIR": os.path.join(sys.prefix, "torch_extensions"),
                         "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture(scope="session")
def start(environment, common_folder):
    """Start a command in the project's folder and wait for it."""
    def start(*words: str) -> subprocess.CompletedProcess:
        # DeepSpeed's launcher takes the same port each time, unlike torchrun's.
        alone = only_one(common_folder / "deepspeed.lock") if "deepspeed" in words else contextlib.nullcontext()
        with alone:
            return subprocess.run([str(word) for word in words], cwd=ROOT, env=environment, capture_output=True,
                                  text=True, timeout=240)
    return start


@pytest.fixture
def start_ranks(environment, tmp_path_factory):
    """Start a script in processes that have its imports already, and wait for them."""
    def start_ranks(script: str, *words: str, count: int = 1, check: bool = False,
                    pretended_gpus: int = 0) -> subprocess.CompletedProcess:
        words = [str(word) for word in words]
        variables = environment | ({"PRETENDED_GPUS": str(pretended_gpus)} if pretended_gpus else {})
        done = run_ranks(script, words, count, variables, tmp_path_factory.mktemp("output"), 240)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done
    return start_ranks


@pytest.fixture
def broken_off(tmp_path):
    """A copy of a run as it was after some step: the last line of a file half written, later ones missing."""
    def broken_off(run: FinishedRun, rows: int = 7) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(run.folder, folder)
        (folder / "run.json").write_text(json.dumps(run.description | {"status": "running", "ended": None}))
        lines = (folder / "steps.csv").read_text().splitlines(keepends=True)
        (folder / "steps.csv").write_text("".join(lines[:1 + rows]) + lines[rows + 1][:5])
        for name in ("summary.csv", "ranks.csv", "predictions.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "model")
        return folder
    return broken_off


@pytest.fixture
def resume(start_ranks):
    """Resume such a run with a command; with one that trained it, or another."""
    def resume(folder: Path, *command: str, pretended_gpus: int = 0) -> FinishedRun:
        count = pretended_gpus or int(command[command.index("--num_gpus") + 1])
        words = [*EXACT, *command[1:], "--output_dir", folder.parent, "--run_name", folder.name, "--resume"]
        return FinishedRun(folder, start_ranks(command[0], *words, count=count, check=True,
                                               pretended_gpus=pretended_gpus))
    return resume


@pytest.fixture(scope="session")
def train(start, environment, common_folder, tmp_path_factory):
    """Run a script with the flags of `EXACT` and some more (later ones win); the same command only once a session."""
    results = common_folder / "results"
    results.mkdir(exist_ok=True)

    def run(name: str, command: tuple[str, ...], gpus: int) -> subprocess.CompletedProcess:
        script = next(place for place, word in enumerate(command, start=1) if word.endswith(".py"))
        words = [*EXACT, "--output_dir", str(results), "--run_name", name, *command[script:]]
        if script > 1:
            return start(*command[:script], *words)
        count = int(command[command.index("--num_gpus") + 1]) if "--num_gpus" in command else 1
        variables = dict(environment)
        if gpus:
            count = 1 if command[0] == "data_parallel.py" else gpus
            words += ["--num_gpus", str(gpus)]
            variables |= {"PRETENDED_GPUS": str(gpus), "HOST_WAITS": str(results / name / "host_waits")}
        return run_ranks(command[0], words, count, variables, tmp_path_factory.mktemp("output"), 240)

    def train(*command: str, pretended_gpus: int = 0) -> FinishedRun:
        name = hashlib.sha256(json.dumps([command, pretended_gpus]).encode()).hexdigest()[:16]
        output_file = results / f"{name}.json"
        with only_one(results / f"{name}.lock"):
            if not output_file.exists():
                output = run(name, command, pretended_gpus)
                output_file.write_text(json.dumps([output.args, output.returncode, output.stdout, output.stderr]))
        output = subprocess.CompletedProcess(*json.loads(output_file.read_text()))
        assert output.returncode == 0, output.stdout + output.stderr
        return FinishedRun(results / name, output)
    return train


@pytest.fixture(scope="session")
def pretended_cuda(train):
    """`train` on pretended GPUs, as many as its first argument says; such a run is a process of its own for each."""
    from tests.pretended_cuda import build

    if reason := build.why_not():
        pytest.skip(reason)
    build.built()
    return lambda gpus, *command: train(*command, pretended_gpus=gpus)


@pytest.fixture(scope="session")
def pretended_gpus(pretended_cuda):
    """`pretended_cuda`; tests that take it are in the slow lane."""
    return pretended_cuda


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "pretended_gpus" in item.fixturenames:
            item.add_marker("slow")

"""Real runs of the scripts, in real processes, on the embedded sample; each is made once and shared by the tests.

The tests are spread over two workers (pytest-xdist, in pyproject.toml), since most of a run's time is waiting.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm_ranks import run_ranks
from workload import launcher

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
    def start_ranks(script: str, *words: str, count: int = 1, check: bool = False) -> subprocess.CompletedProcess:
        words = [str(word) for word in words]
        done = run_ranks(script, words, count, environment, tmp_path_factory.mktemp("output"), 240)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done
    return start_ranks


@pytest.fixture(scope="session")
def train(start, environment, common_folder, tmp_path_factory):
    """Run a script with the flags of `EXACT` and some more (later ones win); the same command only once a session."""
    results = common_folder / "results"
    results.mkdir(exist_ok=True)

    def run(name: str, command: tuple[str, ...]) -> subprocess.CompletedProcess:
        script = next(place for place, word in enumerate(command, start=1) if word.endswith(".py"))
        words = [*EXACT, "--output_dir", str(results), "--run_name", name, *command[script:]]
        if script > 1:
            return start(*command[:script], *words)
        count = int(command[command.index("--num_gpus") + 1]) if "--num_gpus" in command else 1
        return run_ranks(command[0], words, count, environment, tmp_path_factory.mktemp("output"), 240)

    def train(*command: str) -> FinishedRun:
        name = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:16]
        output_file = results / f"{name}.json"
        with only_one(results / f"{name}.lock"):
            if not output_file.exists():
                output = run(name, command)
                output_file.write_text(json.dumps([output.args, output.returncode, output.stdout, output.stderr]))
        output = subprocess.CompletedProcess(*json.loads(output_file.read_text()))
        assert output.returncode == 0, output.stdout + output.stderr
        return FinishedRun(results / name, output)
    return train

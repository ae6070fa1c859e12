"""The fixtures: real runs of the scripts in real processes on the embedded sample, each made once for all tests.

A test's fixtures decide about its lane (shared/lanes.py). The tests are spread over two workers (pytest-xdist, in
pyproject.toml), since most of a run's time is waiting.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import string
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shared import lanes, warm_ranks
from tests.shared.runs import EXACT, ROOT, FinishedRun
from workload.launch import launcher


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
    """A test marked `alone` waits until the other workers' tests have ended, and they wait for it."""
    is_alone = request.node.get_closest_marker("alone") is not None
    with open(common_folder / "turn.lock", "w") as turn, open(common_folder / "tests.lock", "w") as tests:
        fcntl.flock(turn, fcntl.LOCK_EX)  # held while waiting, so that nothing else begins meanwhile
        fcntl.flock(tests, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def _lane(request):
    """A test that starts a run which its lane does not allow fails."""
    with lanes.guarded(request.node):
        yield


@pytest.fixture(scope="session")
def slow_lane() -> None:
    """Tests that take this fixture are in the slow lane."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for what `datasets` caches in the tests' own process, instead of the user's."""
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> str:
    """A local model folder whose every letter is a token, so that known answers do not depend on a vocabulary."""
    folder, tiny = tmp_path_factory.mktemp("letters"), ROOT / "data" / "tiny_bert"
    shown = string.ascii_lowercase + string.digits + "אבגדהוזחטיכלמםנןעשת" + "ابحرمكلت" + "京都"
    korean = unicodedata.normalize("NFD", "한국나라간다")
    # The last piece reaches from within one syllable into the next, as pieces of multilingual vocabularies do.
    pieces = [*shown, *sorted(set(korean)), korean[-4:-1]]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *pieces, *(f"##{p}" for p in pieces)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    shutil.copy(tiny / "tokenizer_config.json", folder)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(words)}), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def story(cache, tmp_path_factory):
    """A loaded `SquadV2`: contexts of several lengths, some with several windows."""
    from tests.shared.squad import ask, load_squad, random_words, write_squad

    generator = random.Random(0)
    paragraphs = []
    for number in range(12):
        words = random_words(generator, 3 + 4 * number)
        context = " ".join(words)
        start = len(words[0]) + 1
        paragraphs.append((context, [ask(f"q{number}", context, words[1], at=start), ask(f"n{number}", context)]))
    path = write_squad(tmp_path_factory.mktemp("story") / "squad.json", *paragraphs)
    return load_squad(path, "--max_seq_length", 48, "--dropout", 0)


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
def environment(tmp_path_factory, common_folder) -> dict[str, str]:
    """The environment of processes that train. Tests that take it, also through other fixtures, are marked `training`.

    No network, caches of our own (the compiler's for the whole session), the virtual environment's commands on the
    path, and DeepSpeed's operation as it was installed, also for processes that skip the scripts' `launch`.
    """
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hugging_face")),
                         "TORCHINDUCTOR_CACHE_DIR": str(common_folder / "inductor"),
                         "TORCH_EXTENSIONS_DIR": os.path.join(sys.prefix, "torch_extensions"),
                         "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture(scope="session")
def start(environment, common_folder):
    """Start a command in the project's folder and wait for it."""
    def start(*words: str, limit_s: float = 240) -> subprocess.CompletedProcess:
        # DeepSpeed's launcher takes the same port each time, unlike torchrun's.
        alone = only_one(common_folder / "deepspeed.lock") if "deepspeed" in words else contextlib.nullcontext()
        with alone:
            return subprocess.run([str(word) for word in words], cwd=ROOT, env=environment, capture_output=True,
                                  text=True, timeout=limit_s)
    return start


@pytest.fixture
def start_ranks(environment, tmp_path_factory):
    """Run a script in processes that are forked with its imports done, and wait for them."""
    def start_ranks(script: str, *words: str, count: int = 1, check: bool = False,
                    pretended_gpus: int = 0) -> subprocess.CompletedProcess:
        words = [str(word) for word in words]
        variables = environment | ({"PRETENDED_GPUS": str(pretended_gpus)} if pretended_gpus else {})
        done = warm_ranks.run_ranks(script, words, count, variables, tmp_path_factory.mktemp("output"), 240)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done
    return start_ranks


@pytest.fixture
def broken_off(tmp_path):
    """A copy of a run as a kill leaves it after some step: a last line half written, later files missing."""
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
    """Resume such a run with the command that trained it, or with another."""
    def resume(folder: Path, *command: str, pretended_gpus: int = 0) -> FinishedRun:
        count = pretended_gpus or int(command[command.index("--num_gpus") + 1])
        words = [*EXACT, *command[1:], "--output_dir", folder.parent, "--run_name", folder.name, "--resume"]
        return FinishedRun(folder, start_ranks(command[0], *words, count=count, check=True,
                                               pretended_gpus=pretended_gpus))
    return resume


@pytest.fixture(scope="session")
def train(start, environment, common_folder, tmp_path_factory):
    """Run a script with the flags of `EXACT` and more (the last one wins); a command runs once in a session."""
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
            if "--device" in command:  # a forked rank's libraries have found GPUs already
                return start("env", f"PRETENDED_GPUS={gpus}", sys.executable, "-m", "tests.pretended_cuda", command[0],
                             *words)
            variables |= {"PRETENDED_GPUS": str(gpus), "DEVICE_COUNTS": str(results / name / "device_counts")}
        return warm_ranks.run_ranks(command[0], words, count, variables, tmp_path_factory.mktemp("output"), 240)

    def train(*command: str, pretended_gpus: int = 0) -> FinishedRun:
        lanes.check(lanes.processes_of(command))
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
    """`train` on pretended GPUs; the first argument is their number. Ranks are not forked but new processes."""
    from tests.pretended_cuda import build

    if reason := build.why_not():
        pytest.skip(reason)
    build.built()
    return lambda gpus, *command: train(*command, pretended_gpus=gpus)


@pytest.fixture(scope="session")
def pretended_gpus(pretended_cuda, slow_lane):
    """`pretended_cuda` in the slow lane."""
    return pretended_cuda


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        for name in lanes.marks(item):
            item.add_marker(name)
    # The longest first, so that no worker ends with one while the other has nothing left.
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))

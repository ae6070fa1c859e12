"""What comes from elsewhere runs no code here, what is written holds no secret, and nobody else can join a run."""

import ast
import builtins
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

import plots
from measurement.redaction import HIDDEN, without_secrets
from tests.shared.runs import EXACT, ROOT
from workload.errors import InputError
from workload.launch import loopback
from workload.models.loading import load_config, load_tokenizer

SHORT = [*EXACT, "--max_steps", "4"]


# ---------------------------------------------------------------------- what is loaded

@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder without weights."""
    return Path(shutil.copytree(ROOT / "data" / "tiny_bert", tmp_path / "model"))


@pytest.fixture
def marker(tmp_path) -> Path:
    """What code would make, if it were run."""
    return tmp_path / "code_was_run"


class MakesFolder:
    """Once unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))],
                         ids=["torch.save", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(save, count, folder, marker, start_ranks, tmp_path):
    save({"bert.pooler.dense.bias": MakesFolder(marker)}, folder / "pytorch_model.bin")
    done = start_ranks("bert_baseline.py", *SHORT, "--model", folder, "--output_dir", tmp_path / "out", count=count)
    assert not marker.exists()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert str(folder) in line and "pickle" in line and "use a folder with model.safetensors" in line
    pickle.loads(pickle.dumps(MakesFolder(marker)))
    assert marker.exists(), "it is one that would"


def test_a_pickle_of_tensors_alone_is_taken(folder, start_ranks, tmp_path):
    model = BertForQuestionAnswering(BertConfig.from_pretrained(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    start_ranks("bert_baseline.py", *SHORT, "--model", folder, "--output_dir", tmp_path, "--run_name", "run",
                check=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["flags"]["from_scratch"] is False


def add_code(folder: Path, file: str, marker: Path, **content) -> None:
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n"
                                   "from transformers import BertConfig as Own, BertTokenizer as OwnTokenizer\n")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_a_model_with_its_own_code_is_refused_unasked(model_type, folder, marker, monkeypatch):
    add_code(folder, "config.json", marker, model_type=model_type, auto_map={"AutoConfig": "own.Own"})
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    with pytest.raises(InputError) as caught:
        load_config(str(folder), None)
    assert "auto_map" in str(caught.value) and "never run" in str(caught.value) and str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and not marker.exists()


@pytest.mark.parametrize("tokenizer_class", ["BertTokenizer", "OwnTokenizer"])
def test_a_tokenizer_with_its_own_code_is_refused_unasked(tokenizer_class, folder, marker, monkeypatch):
    add_code(folder, "tokenizer_config.json", marker, tokenizer_class=tokenizer_class,
             auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]})
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    with pytest.raises(InputError, match="--tokenizer .*auto_map.* never run"):
        load_tokenizer(str(folder), "tokenizer")
    assert not marker.exists()


def test_a_tokenizer_is_not_found_by_way_of_a_models_own_code(folder, marker, monkeypatch):
    """Without a tokenizer_config.json transformers looks into config.json."""
    add_code(folder, "config.json", marker, model_type="own", auto_map={"AutoConfig": "own.Own"})
    for file in ("tokenizer_config.json", "tokenizer.json"):
        (folder / file).unlink()
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    with pytest.raises(InputError) as caught:
        load_tokenizer(str(folder), "tokenizer")
    assert "\n" not in str(caught.value) and not marker.exists()


def test_the_refusal_reaches_the_user(folder, marker, start_ranks, tmp_path):
    add_code(folder, "config.json", marker, model_type="own", auto_map={"AutoConfig": "own.Own"})
    done = start_ranks("bert_baseline.py", *SHORT, "--model", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "auto_map" in done.stderr, done.stderr
    assert not marker.exists() and not (tmp_path / "out").exists()


def calls_of(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Every call in a file: what is called, and the arguments that are given by name."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), {word.arg: word.value for word in call.keywords if word.arg}) for call in calls]


def test_nothing_of_ours_unpickles_what_it_is_given():
    """Also what is added later: `torch.load` only with `weights_only`, no other unpickler, no trust in remote code."""
    files = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]
             if "tests" not in path.parts and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    assert len(files) > 50
    seen = set()
    for file in files:
        for name, words in calls_of(file):
            assert name not in ("pickle.load", "pickle.loads", "dill.load", "joblib.load", "eval", "exec"), file
            if name == "torch.load":
                assert ast.unparse(words["weights_only"]) == "True", file
            if "trust_remote_code" in words:
                assert ast.unparse(words["trust_remote_code"]) == "False", file
                seen.add(name)
    assert {"AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "kind.from_pretrained"} <= seen


# ---------------------------------------------------------------------- what is written

SECRETS = {"HF_TOKEN": "hf_" + 34 * "x", "WANDB_API_KEY": 5 * "0123cdef", "AWS_SECRET_ACCESS_KEY": 4 * "an+Example."}
PASSWORD_IN_URL = "a-password-that-is-in-no-variable"


def test_no_file_of_a_run_holds_a_secret(start_ranks, environment, monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setitem(environment, name, value)
    remote = f"https://someone:{PASSWORD_IN_URL}@example.org/project.git"
    for name, value in {"COUNT": "1", "KEY_0": "remote.origin.url", "VALUE_0": remote}.items():
        monkeypatch.setitem(environment, f"GIT_CONFIG_{name}", value)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"comet": {"enabled": False, "api_key": PASSWORD_IN_URL}}))
    output_dir = tmp_path / SECRETS["AWS_SECRET_ACCESS_KEY"]  # a secret in a flag
    start_ranks("zero.py", *SHORT, "--max_steps", "12", "--profile_steps", "2", "--deepspeed_config", config,
                "--output_dir", output_dir, "--run_name", "run", check=True)
    files = [file for file in (output_dir / "run").rglob("*") if file.is_file()]
    assert {"run.json", "steps.csv", "summary.csv"} <= {file.name for file in files} and len(files) > 8
    for file in files:
        content = subprocess.run(["gzip", "-dc", file], capture_output=True, check=True).stdout \
            if file.suffix == ".gz" else file.read_bytes()
        for secret in [*SECRETS.values(), PASSWORD_IN_URL]:
            assert secret.encode() not in content, file.name
    description = json.loads((output_dir / "run" / "run.json").read_text())
    assert description["status"] == "finished" and description["git"]["commit"]
    assert description["flags"]["output_dir"] == str(tmp_path / HIDDEN) and HIDDEN in description["command"]
    assert description["deepspeed_config"]["comet"] == {"enabled": False, "api_key": HIDDEN}


@pytest.mark.parametrize("strategy", plots.STUDY.strategies)
def test_no_runs_own_name_looks_like_a_token(strategy):
    name = f"squad_v2-tiny-{strategy}-4dev-2stages-16micro-batch128-bf16_native-seed0"
    assert without_secrets({"run_name": name}, {}) == {"run_name": name}


@pytest.mark.parametrize("token", [
    "hf_" + 34 * "x", "ghp_" + 36 * "a", "github_pat_" + 22 * "A" + "_" + 59 * "b", "glpat-" + 20 * "c",
    "sk-proj-" + 40 * "d", "AKIA" + 16 * "E"])
def test_a_token_is_hidden_by_how_it_begins(token):
    assert without_secrets(f"--model a-{token}", {}) == f"--model a-{HIDDEN}"


def test_what_is_hidden_and_what_stays():
    content = {"command": "zero.py --model https://me:pass@example.org/model --run_name s3cr3t-value",
               "flags": {"tokenizer": "bert-base-uncased", "max_seq_length": 128, "none": None},
               "deepspeed_config": {"wandb": {"api_key": "x", "team": "us"}},
               "words": ["hf_" + "a" * 34, "AKIA" + "A" * 16, "https://example.org/no/user", "host@example.org"]}
    environment = {"MY_API_TOKEN": "s3cr3t-value", "TOKENIZERS_PARALLELISM": "uncased", "SORT_KEY": "us"}
    assert without_secrets(content, environment) == content | {
        "command": f"zero.py --model https://{HIDDEN}@example.org/model --run_name {HIDDEN}",
        "deepspeed_config": {"wandb": {"api_key": HIDDEN, "team": "us"}},
        "words": [HIDDEN, HIDDEN, "https://example.org/no/user", "host@example.org"]}


# ---------------------------------------------------------------------- who can join

def listening(process: psutil.Process) -> set[tuple[str, int]]:
    return {tuple(connection.laddr) for connection in process.net_connections() if connection.status == "LISTEN"}


@pytest.mark.parametrize("command", [
    [sys.executable, "bert_baseline.py", "--num_gpus", "2"],
    ["deepspeed", "--num_gpus", "2", "--master_port", "29617", "pipeline.py"],
])
def test_a_run_on_one_machine_listens_on_loopback_only(command, environment, tmp_path):
    words = [*command, *EXACT, "--max_steps", "100000", "--output_dir", tmp_path, "--run_name", "run"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = []
    try:
        steps = tmp_path / "run" / "steps.csv"
        deadline = time.time() + 120
        while time.time() < deadline and not (steps.exists() and steps.read_text().count("\n") > 2):
            time.sleep(0.2)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        ranks = {rank["pid"] for rank in json.loads((tmp_path / "run" / "run.json").read_text())["ranks"]}
        sockets = {one.pid: listening(one) for one in family}
    finally:
        for one in reversed(family or [process]):
            one.terminate()
        process.wait(timeout=60)
    assert len(ranks) == 2 and all(sockets[pid] for pid in ranks), "every rank listens for the others"
    assert {address for places in sockets.values() for address, _ in places} == {"127.0.0.1"}


def test_a_store_is_on_loopback_only_where_the_launcher_says_one_machine(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        monkeypatch.delenv(name)
    for address in ("node1", "192.0.2.7", "2001:db8::1"):
        monkeypatch.setenv("MASTER_ADDR", address)
        assert loopback.store_of_one_machine(0) is None
        assert "GLOO_SOCKET_IFNAME" not in os.environ, "the network stays as the cluster sets it"
    before = listening(psutil.Process())
    store = loopback.listening_store()
    assert listening(psutil.Process()) - before == {("127.0.0.1", store.port)}
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    store.set("who", "rank 0")
    assert loopback.store_of_one_machine(1).get("who") == b"rank 0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=" + os.environ["GLOO_SOCKET_IFNAME"] != "="
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert loopback.store_of_one_machine(0) is None, "torchrun holds it"

"""What comes from elsewhere runs no code here."""

import ast
import builtins
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import EXACT, ROOT
from workload.errors import InputError
from workload.models import load_config, load_tokenizer

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
    assert str(folder) in line and "pickle" in line and "safetensors fits" in line
    pickle.loads(pickle.dumps(MakesFolder(marker)))
    assert marker.exists(), "it is one that would"


def test_a_pickle_of_tensors_alone_is_taken(folder, start_ranks, tmp_path):
    torch.save({"qa_outputs.bias": torch.zeros(2)}, folder / "pytorch_model.bin")
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

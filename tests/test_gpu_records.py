"""Runs on a GPU become a record only if they are finished, of one clean commit, on one kind of GPU, and verified."""

import csv
import json
import shutil

import pytest

from experiments import gpu_records
from tests.shared.runs import ROOT

NAME = "nvidia_h100_80gb_hbm3"
SAME = {"source_digest": "aaa", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8",
        "hardware": "NVIDIA H100 80GB HBM3"}
ROW = SAME | {"strategy": "ddp", "devices": "1", "pipeline_stages": "1", "schedule": "", "commit": "a" * 40,
              "dirty": "no", "complete": "yes"}
FSDP = {"strategy": "fsdp", "devices": "1", "pipeline_stages": "1", "schedule": None}


def write_run(folder, status="finished", **values):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status, "model": {"family": "bert"}}))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW | values)


@pytest.fixture
def good(tmp_path):
    """Two runs, their verification, and what else on_gpu.sh leaves behind."""
    folder = tmp_path / NAME
    write_run(folder / "ddp")
    write_run(folder / "fsdp", strategy="fsdp")
    (folder / "fsdp" / "profile").mkdir()
    (folder / "fsdp" / "profile" / "rank0.json.gz").write_bytes(b"large")
    (folder / "inputs").mkdir()
    (folder / "inputs" / "train.json").write_text("{}")
    (folder / "comparison.csv").write_text("setting\n")
    verify(folder)
    return folder


def verify(folder, status="equal", **values):
    entry = SAME | {"family": "bert", "devices": 1, "date": "2026-11-25", "rows": [
        FSDP | {"name": "FSDP x 1", "status": status, "reason": ""}]} | values
    (folder / "verification.json").write_text(json.dumps({"verifications": [entry]}))


def test_a_good_folder_is_copied_without_what_is_large(good, tmp_path, monkeypatch):
    assert gpu_records.problems_of(good) == []
    monkeypatch.setattr(gpu_records, "REFERENCE", tmp_path / "reference")
    gpu_records.copy(good)
    record = tmp_path / "reference" / NAME
    assert {str(path.relative_to(record)) for path in record.rglob("*.*")} == {
        "verification.json", *(f"{run}/{name}" for run in ("ddp", "fsdp") for name in ("run.json", "summary.csv"))}
    assert gpu_records.problems_of(record) == []


@pytest.mark.parametrize("changed, said", [
    ({"status": "failed"}, "bad: its status is failed"), ({"dirty": "yes"}, "bad: it was not run from a commit"),
    ({"commit": ""}, "bad: it was not run from a commit"), ({"complete": ""}, "bad: summary.csv was cut off"),
    ({"source_digest": "bbb"}, "2 values of source_digest: aaa; bbb"),
    ({"hardware": "NVIDIA L4"}, "on NVIDIA L4, so its name must be nvidia_l4"),
    ({"hardware": "NVIDIA H100 80GB HBM3, NCCL_ALGO=Ring"}, "2 values of hardware"),
    ({"strategy": "zero3"}, "bad (not among the settings that were run)"),
    ({"strategy": "fsdp", "devices": "2"}, "bad (not among the settings that were run)")])
def test_a_run_that_cannot_be_a_record_is_named(changed, said, good):
    write_run(good / "bad", **changed)
    assert any(said in problem for problem in gpu_records.problems_of(good)), gpu_records.problems_of(good)


def test_a_strategy_that_differs_or_is_not_verified_is_named(good):
    verify(good, status="differs")
    assert "fsdp (differs: )" in gpu_records.problems_of(good)[0]
    verify(good, torch="2.12.0")
    assert "Not verified" in gpu_records.problems_of(good)[0]
    (good / "verification.json").write_text('{"verifi')
    assert "cannot be read" in gpu_records.problems_of(good)[0]
    (good / "verification.json").unlink()
    assert "it has no verification.json" in gpu_records.problems_of(good)[0]
    (good / "fsdp" / "run.json").write_text('{"status": "fini')
    assert gpu_records.problems_of(good)[0].startswith("fsdp: ")
    for run in ("ddp", "fsdp"):
        shutil.rmtree(good / run)
    assert gpu_records.problems_of(good) == ["it has no run"]
    with pytest.raises(SystemExit, match="it has no run"):
        gpu_records.copy(good)


def test_records_of_gpus_are_good():
    folders = [path for path in (ROOT / "results" / "reference").iterdir() if path.is_dir() and "cpu" not in path.name]
    assert not {path.name: problems for path in folders if (problems := gpu_records.problems_of(path))}


@pytest.mark.parametrize("state, is_hub", [("can be reached", True), ("cannot be reached (status 403)", False),
                                           ("not used (HF_HUB_OFFLINE is set)", False)])
def test_model_and_data_are_decided_once(state, is_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_records.HubCheck, "__init__", lambda check: None)
    monkeypatch.setattr(gpu_records.HubCheck, "answer", lambda check: {"state": state})
    flags = gpu_records.inputs(tmp_path)
    assert ("--model bert-base-uncased" in flags) == is_hub == ("--from_scratch true" not in flags)
    monkeypatch.setattr(gpu_records.HubCheck, "answer", lambda check: pytest.fail("asked again"))
    assert gpu_records.inputs(tmp_path) == flags


def test_made_up_text_has_squads_lengths_and_right_answers(tmp_path, cache):
    """A part of SQuAD v2 with BERT's vocabulary: 193 tokens a window, a tenth below 116, a tenth above 302."""
    from tests.shared.squad import load_squad

    flags = gpu_records.write_inputs(tmp_path)
    task = load_squad(tmp_path / "eval.json", "--max_seq_length", "384", *flags[:4])
    shape = [getattr(task.config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")]
    assert shape == [768, 12, 30522]
    content = json.loads((tmp_path / "train.json").read_text())
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    answers = [(paragraph["context"], answer) for paragraph in paragraphs for question in paragraph["qas"]
               for answer in question["answers"]]
    assert all(context[answer["answer_start"]:].startswith(answer["text"]) for context, answer in answers)
    words = [task.tokenizer(paragraph["qas"][0]["question"], paragraph["context"])["input_ids"]
             for paragraph in paragraphs[::10]]
    lengths = sorted(min(len(each), 384) for each in words)
    tenth = len(lengths) // 10
    assert 183 < sum(lengths) / len(lengths) < 203 and 100 < lengths[tenth] < 132 and 270 < lengths[-tenth] < 340

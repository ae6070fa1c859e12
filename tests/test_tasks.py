"""IMDB, MNLI and OSCAR: samples, models, losses and scores."""

import csv
import json
import math
import shutil

import datasets
import numpy as np
import pytest
import torch
import zstandard

from tests.shared.runs import ROOT
from tests.shared.small_inputs import open_flags, write
from workload.errors import InputError

TASKS = ("imdb", "mnli", "oscar")
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def samples():
    """Each task with its embedded sample, loaded."""
    made = {task: open_flags("--task", task, "--sample", "--model", "tiny", "--max_seq_length", 64) for task in TASKS}
    for task in made.values():
        task.load()
    return made


@pytest.mark.parametrize("flags, told", [
    (("--task", "imdb", "--sample", "--doc_stride", 8), "--doc_stride would be ignored by --task imdb"),
    (("--task", "squad_v2", "--sample", "--eval_mismatched_file", "x"), "contradict"),
    (("--task", "mnli", "--eval_mismatched_file", "x"), "--eval_mismatched_file needs"),
    (("--task", "imdb", "--sample", "--model", "tiny", "--from_scratch", "false"), "has no trained weights"),
    (("--task", "oscar", "--sample", "--model", str(ROOT / "data" / "tiny_bert")), "takes a 'gpt2' model"),
    (("--task", "imdb", "--sample", "--model", str(ROOT / "data" / "tiny_gpt2"), "--from_scratch", "true"),
     "no encoder"),
    (("--task", "mnli", "--sample", "--model", "tiny", "--max_seq_length", 600), "takes at most 512 tokens"),
])
def test_flags_that_do_not_fit_are_refused(flags, told):
    with pytest.raises(InputError, match=told):
        open_flags(*flags)


# ---------------------------------------------------------------------- samples

def test_a_review_is_cut_and_a_pair_keeps_both_its_sentences(samples):
    imdb, mnli = samples["imdb"], samples["mnli"]
    rows, texts = imdb.samples("train"), imdb.examples["train"]["text"]
    assert max(rows["length"]) == 64 < max(len(imdb.tokenizer(text)["input_ids"]) for text in texts[:200])
    for row, text in zip(rows.select(range(20)), texts[:20], strict=True):
        whole = imdb.tokenizer(text)["input_ids"]
        assert row["input_ids"] == (whole if len(whole) <= 64 else whole[:63] + whole[-1:])
    row, example = mnli.samples("train")[0], mnli.examples["train"][0]
    assert row["input_ids"] == mnli.tokenizer(example["text"], example["pair"])["input_ids"]
    assert set(row["token_type_ids"]) == {0, 1}


def test_mnli_is_evaluated_on_both_its_files(samples):
    task = samples["mnli"]
    matched = len(task.features["validation"])
    everything = task.samples("validation")
    assert len(everything) == matched + len(task.features["validation_mismatched"])
    right = np.array(everything["label"])
    logits = {row: np.eye(3)[right[row]] for row in range(len(right))}
    assert task.score(logits)[0] == {"accuracy": 100, "accuracy_mismatched": 100}
    for row in range(matched, len(right)):
        logits[row] = np.eye(3)[(right[row] + 1) % 3]
    logits[0] = -logits[0]
    scores, predictions = task.score(logits)
    assert scores == {"accuracy": pytest.approx(100 * (matched - 1) / matched), "accuracy_mismatched": 0}
    assert predictions[everything[1]["feature_id"]] == task.classes[right[1]]
    assert predictions["mismatched:" + everything[matched]["feature_id"]] == task.classes[(right[matched] + 1) % 3]
    assert len(predictions) == len(right)


def test_mnli_without_a_mismatched_file_has_one_accuracy(tmp_path):
    train = ROOT / "data" / "mnli" / "dev_matched.tsv"
    task = open_flags("--task", "mnli", "--model", "tiny", "--train_file", train, "--eval_file", train)
    assert task.metrics == ("accuracy",)


def test_blocks_hold_all_text_in_order_but_the_rest_behind_the_last(samples):
    task = samples["oscar"]
    blocks = task.samples("train")
    assert set(blocks["length"]) == {64} and len(set(blocks["feature_id"])) == len(blocks)
    tokens = [token for block in blocks["input_ids"] for token in block]
    expected = [token for text in task.examples["train"]["text"]
                for token in [*task.tokenizer(text)["input_ids"], task.tokenizer.eos_token_id]]
    assert tokens == expected[: len(tokens)] and 0 <= len(expected) - len(tokens) < 64


def collate(task, rows, length):
    """Some rows of the training data, collated as `Batches` does."""
    return task.collate(task.samples("train").with_format("arrow")[list(rows)], length)


def test_collate_pads_what_the_model_takes(samples):
    for name, task in samples.items():
        rows = task.samples("train")[:5]
        inputs, labels = collate(task, range(5), 64)
        assert tuple(inputs) == task.input_names and tuple(labels) == task.label_names
        assert all(tensor.shape == (5, 64) for tensor in inputs.values())
        for row, length in enumerate(rows["length"]):
            assert inputs["input_ids"][row, :length].tolist() == rows["input_ids"][row]
            if name != "oscar":
                assert inputs["attention_mask"][row].tolist() == [1] * length + [0] * (64 - length)
                assert set(inputs["input_ids"][row, length:].tolist()) <= {task.tokenizer.pad_token_id}


# ---------------------------------------------------------------------- models and losses

@pytest.fixture(scope="module")
def models(samples):
    torch.set_num_threads(1)
    return {name: task.build_model().eval() for name, task in samples.items()}


@pytest.mark.parametrize("name", TASKS)
def test_a_loss_is_the_models_own_whatever_it_is_batched_with(name, samples, models):
    task, model = samples[name], models[name]
    rows = [0, 1, 2]
    inputs, labels = collate(task, rows, 64)
    with torch.no_grad():
        logits = task.logits(model, inputs)
        assert logits.shape == task.logits_shape(3, 64)
        losses = task.loss(logits, labels)
        for row in rows:
            inputs, labels = collate(task, [row], task.samples("train")[row]["length"])
            alone = task.logits(model, inputs)
            assert task.loss(alone, labels).item() == pytest.approx(losses[row].item(), abs=1e-5)
            if name == "oscar":
                assert model(**inputs, labels=inputs["input_ids"]).loss.item() == pytest.approx(losses[row].item())
            if name == "mnli":
                assert model(**inputs, labels=labels["label"]).loss.item() == pytest.approx(losses[row].item())


@pytest.mark.parametrize("name", TASKS)
def test_layers_in_order_are_the_model(name, samples, models):
    from workload.models.layers import ordered_layers

    inputs, _ = collate(samples[name], range(3), 64)
    with torch.no_grad():
        activation = tuple(inputs.values())
        for layer in ordered_layers(models[name]).values():
            activation = layer(activation)
        torch.testing.assert_close(activation, samples[name].logits(models[name], inputs), rtol=0, atol=1e-5)


def test_perplexity_is_e_to_the_mean_loss(samples):
    task = samples["oscar"]
    assert task.score({0: np.float32(math.log(8)), 1: np.float32(math.log(2))})[0]["perplexity"] == pytest.approx(4)
    uniform = torch.zeros(2, 64, task.config.vocab_size)
    inputs, labels = collate(task, range(2), 64)
    assert task.losses_and_outputs(uniform, labels)[0].tolist() == pytest.approx([math.log(task.config.vocab_size)] * 2)


def test_the_study_models_have_their_published_sizes(tmp_path):
    write(tmp_path / "config.json", json.dumps({"model_type": "gpt2"}))  # with the defaults it equals the Hub's
    oscar = open_flags("--task", "oscar", "--sample", "--tokenizer", ROOT / "data" / "tiny_gpt2", "--model", tmp_path,
                       "--from_scratch", "true")
    assert oscar.max_length == 256, "the tokenizer's"
    oscar.config.vocab_size = 50257
    with torch.device("meta"):
        assert sum(p.numel() for p in oscar.build_model().parameters()) == 124_439_808
    imdb = open_flags("--task", "imdb", "--sample", "--tokenizer", ROOT / "data" / "tiny_encoder")
    assert imdb.model_name == "encoder_classifier" and imdb.from_scratch and imdb.max_length == 256
    assert imdb.config.vocab_size == len(imdb.tokenizer) == 1000


def test_an_encoder_of_another_family_trains_without_a_flop_formula(tmp_path, start_ranks):
    """MFU by BERT's formula would be wrong for FNet, which has no attention: it stays empty, and run.json says why."""
    shutil.copytree(ROOT / "data" / "tiny_encoder", tmp_path / "model")
    write(tmp_path / "model" / "config.json", json.dumps({
        "model_type": "fnet", "vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "max_position_embeddings": 514, "pad_token_id": 0}))
    start_ranks("bert_baseline.py", "--task", "imdb", "--sample", "--model", tmp_path / "model", "--from_scratch",
                "true", "--max_seq_length", 32, "--max_steps", 4, "--global_batch_size", 4, "--max_eval_examples", 4,
                "--cpu_threads", 1, "--noise_scale_steps", 0, "--peak_tflops", 1, "--output_dir", tmp_path,
                "--run_name", "run", check=True)
    row = next(csv.DictReader((tmp_path / "run" / "summary.csv").read_text().splitlines()))
    reasons = json.loads((tmp_path / "run" / "run.json").read_text())["empty"]
    for column in ("model_flops_per_sample", "mfu_pct", "hfu_pct"):
        assert row[column] == "" and reasons[column] == "no FLOP formula for a 'fnet' model"
    assert row["peak_tflops"] == "1.0" and float(row["throughput_samples_per_s"]) > 0


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_any_encoder_classifies_reviews(kind, tmp_path):
    """From a local folder like the Hub's. Dropout is overridden whatever the model's configuration calls it."""
    from workload.models.layers import ORDERED_LAYERS, layer_names, transformer_modules

    shutil.copytree(ROOT / "data" / "tiny_encoder", tmp_path, dirs_exist_ok=True)
    sizes = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
             "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                         "max_position_embeddings": 514, "pad_token_id": 0}}[kind]
    write(tmp_path / "config.json", json.dumps({"model_type": kind, "vocab_size": 1000, **sizes}))
    task = open_flags("--task", "imdb", "--sample", "--model", tmp_path, "--from_scratch", "true", "--dropout", 0)
    task.load()
    model = task.build_model().train()
    assert not {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} - {0}
    inputs, labels = collate(task, range(2), 256)
    assert torch.equal(task.logits(model, inputs), task.logits(model, inputs))
    assert task.loss(task.logits(model, inputs), labels).shape == (2,)
    assert layer_names(model) == list(transformer_modules(model)) and len(layer_names(model)) == 2
    assert kind not in ORDERED_LAYERS
    assert task.shape.layers == 2 and task.shape.intermediate == 64


# ---------------------------------------------------------------------- the Hub

def test_imdb_from_the_hub_is_imdb_from_its_files(samples, tmp_path, monkeypatch):
    for split, name in (("train", "train"), ("validation", "test")):
        rows = samples["imdb"].examples[split].select_columns(["text", "label"])
        rows.to_parquet(tmp_path / "plain_text" / f"{name}-00000-of-00001.parquet")
    monkeypatch.setattr("workload.tasks.imdb.HUB_DATASET", str(tmp_path))
    task = open_flags("--task", "imdb", "--model", "tiny", "--max_seq_length", 64)
    task.load()
    for split in ("train", "validation"):
        assert task.samples(split)["input_ids"][:] == samples["imdb"].samples(split)["input_ids"][:]
        assert task.samples(split)["label"][:] == samples["imdb"].samples(split)["label"][:]


def test_mnli_from_the_hub_is_mnli_from_its_files(samples, tmp_path, monkeypatch):
    names = {"train": "train", "validation": "validation_matched", "validation_mismatched": "validation_mismatched"}
    files = [{"split": name, "path": f"mnli/{name}-*"} for name in names.values()]
    write(tmp_path / "README.md", f"---\nconfigs:\n- {json.dumps({'config_name': 'mnli', 'data_files': files})}\n---\n")
    for split, name in names.items():
        rows = samples["mnli"].examples[split].rename_columns({"text": "premise", "pair": "hypothesis"})
        rows = rows.remove_columns("id").add_column("idx", list(range(len(rows))))
        if split == "train":
            rows = datasets.concatenate_datasets([rows, rows.select([0]).map(lambda row: {"label": -1})])
        rows.to_parquet(tmp_path / "mnli" / f"{name}-00000-of-00001.parquet")
    monkeypatch.setattr("workload.tasks.mnli.HUB_DATASET", str(tmp_path))
    task = open_flags("--task", "mnli", "--model", "tiny", "--max_seq_length", 64)
    task.load()
    for split in ("train", "validation"):
        for column in ("input_ids", "token_type_ids", "label"):
            assert task.samples(split)[column][:] == samples["mnli"].samples(split)[column][:], "-1: no label"


def test_oscar_from_the_hub_takes_so_many_bytes_and_keeps_every_twentieth_document(tmp_path, monkeypatch):
    texts = [f"Document {number}." for number in range(200)]
    lines = "".join(json.dumps({"content": text, "metadata": {}}) + "\n" for text in texts)
    (tmp_path / "en_meta_part_1.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    monkeypatch.setattr("workload.tasks.oscar.HUB_FILE", str(tmp_path / "en_meta_part_1.jsonl.zst"))
    monkeypatch.setattr("workload.tasks.oscar.HUB_BYTES", sum(len(text) for text in texts[:100]))
    task = open_flags("--task", "oscar", "--model", "tiny", "--max_seq_length", 16)
    task.load()
    assert task.examples["validation"]["text"][:] == texts[19:100:20]
    assert task.examples["train"]["text"][:] == [text for text in texts[:100] if text not in texts[19:100:20]]


@pytest.mark.parametrize("task, told", [
    ("imdb", "stanfordnlp/imdb cannot be downloaded"), ("mnli", "nyu-mll/glue cannot be downloaded"),
    ("oscar", "It is gated: accept its licence on https://huggingface.co/datasets/oscar-corpus/OSCAR-2301, then `hf "
              "auth login` or set HF_TOKEN. Or take any text: --train_file")])
def test_without_the_hub_one_line_says_what_fits(task, told, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as error:
        open_flags("--task", task, "--model", "tiny")
    assert told in str(error.value) and "--sample" in str(error.value)

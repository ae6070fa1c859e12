"""Model folders as users have them are read correctly, or refused in one line before anything is tokenised."""

import csv
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.shared.runs import ROOT
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError
from workload.tasks.registry import open_task

pytestmark = pytest.mark.usefixtures("cache")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "pad_token_id": 0, "max_position_embeddings": 130}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 440449768\n"
LENGTH = 32
KINDS = {"Bert": {},  "Roberta": {"type_vocab_size": 1}, "Electra": {"embedding_size": 16},
         "Albert": {"embedding_size": 16}, "Deberta": {"type_vocab_size": 0}, "DebertaV2": {"type_vocab_size": 0},
         "MPNet": {}, "FNet": {"num_attention_heads": None}, "SqueezeBert": {"embedding_size": 32}, "ModernBert": {},
         "XLMRoberta": {"type_vocab_size": 1}, "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}}
EAGER = {"Deberta", "DebertaV2", "MPNet", "FNet", "SqueezeBert"}


def copy_tokenizer(folder, name="tiny_bert_cased"):
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(ROOT / "data" / name / file, folder)


def vocabulary_size(name="tiny_bert_cased"):
    return len((ROOT / "data" / name / "vocab.txt").read_text().splitlines())


def save(folder, architecture="BertForSequenceClassification", config="BertConfig", **settings):
    """A folder with a small model and the embedded cased tokenizer. Settings that are None are left out."""
    torch.manual_seed(1)
    settings = {"vocab_size": vocabulary_size(), **SMALL, **settings}
    made = getattr(transformers, config)(**{key: value for key, value in settings.items() if value is not None})
    getattr(transformers, architecture)(made).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


@pytest.fixture
def answering(tmp_path):
    return save(tmp_path / "model", "BertForQuestionAnswering")


@pytest.fixture
def entailing(tmp_path):
    return save(tmp_path / "model", num_labels=3)


def change_config(folder, **settings):
    """Set keys of config.json; None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | settings
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder, change, file="model.safetensors"):
    state = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file(state, folder / file, {"format": "pt"})


def opened(task, folder, *flags):
    """The task, opened and checked as at the start of a run, its data not yet tokenised."""
    made = open_task(parse_arguments(Arguments, ["--task", task, "--sample", "--model", str(folder),
                                                 "--max_seq_length", str(LENGTH), *flags]))
    made.check_model()
    return made


def refusal(task, folder, *flags):
    """The error message, which appears before any data is tokenised."""
    with pytest.raises(InputError) as caught:
        opened(task, folder, *flags)
    return str(caught.value)


def first_batch(task):
    task.load()
    return task.collate(task.samples("validation").with_format("arrow")[:8], LENGTH, is_padded=True)


# ---------------------------------------------------------------------- weights that are not the model's

@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("change, said", [
    (lambda s: {f"module.{key}": value for key, value in s.items()}, "take 'module.' off their names"),
    (lambda s: {f"_orig_mod.{key}": value for key, value in s.items()}, "take '_orig_mod.' off their names"),
    (lambda s: {key: value for key, value in s.items() if "layer.1." not in key}, "lack bert.encoder.layer.1."),
    (lambda s: s | {key.replace("layer.1.", "layer.2."): value.clone() for key, value in s.items()},
     "hold bert.encoder.layer.2."),
    (lambda s: {key.replace("query.weight", "query.base_layer.weight"): value for key, value in s.items()},
     "lack bert.encoder.layer.0.attention.self.query.weight"),
    (lambda s: {key: value for key, value in s.items() if key != "qa_outputs.bias"}, "lack qa_outputs.bias"),
    (lambda s: {f"module.{key.removeprefix('bert.')}": value for key, value in s.items()}, "take 'module.' off"),
    (lambda s: s | {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.embeddings.word_embeddings.weight":
                    s["bert.embeddings.word_embeddings.weight"][:-1].clone()},
     "bert.embeddings.word_embeddings.weight is"),
    (lambda s: s | {"bert.embeddings.LayerNorm.bias": torch.full((32,), float("nan"))},
     "damaged: bert.embeddings.LayerNorm.bias"),
])
def test_weights_of_another_model_are_refused(answering, file, change, said):
    change_weights(answering, change, file)
    line = refusal("squad_v2", answering)
    assert said in line and line.startswith(f"--model {answering}: "), line


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_weights_are_refused(answering, wrapper):
    change_weights(answering, lambda s: {wrapper: s, "epoch": 3}, "pytorch_model.bin")
    assert f"but hold {wrapper!r}; save what that holds" in refusal("squad_v2", answering)


def test_weights_that_are_whole_numbers_are_refused(answering):
    change_weights(answering, lambda s: {key: value.to(torch.int8) for key, value in s.items()})
    assert "I8 values" in refusal("squad_v2", answering)


def test_gpt2s_shared_weight_of_another_shape_is_refused_and_its_old_buffers_are_not(tmp_path):
    shutil.copytree(ROOT / "data" / "tiny_gpt2", tmp_path / "model")
    config = transformers.GPT2Config.from_pretrained(tmp_path / "model")
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    change_weights(tmp_path / "model", lambda s: s | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
                                                      "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)})
    assert opened("oscar", tmp_path / "model", "--from_scratch", "false").fresh_parameters == []
    change_config(tmp_path / "model", vocab_size=config.vocab_size + 8)
    assert "do not fit" in refusal("oscar", tmp_path / "model", "--from_scratch", "false")


@pytest.mark.parametrize("kind, gone", [
    ("Bert", "bert.pooler."), ("Roberta", "classifier.dense."), ("Roberta", "classifier.out_proj."),
    ("DistilBert", "pre_classifier."), ("Albert", "albert.pooler."), ("Electra", "classifier.out_proj.")])
def test_half_a_head_is_refused(tmp_path, kind, gone):
    folder = save(tmp_path / "model", f"{kind}ForSequenceClassification", f"{kind}Config", num_labels=3, **KINDS[kind])
    change_weights(folder, lambda s: {key: value for key, value in s.items() if not key.startswith(gone)})
    assert f"lack {gone}" in refusal("mnli", folder)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "Electra", "Albert",
                                  "ModernBert", "Deberta"])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_a_model_without_a_classifier_gets_a_fresh_one(tmp_path, kind, head):
    settings = KINDS.get(kind, KINDS["XLMRoberta"])
    task = opened("mnli", save(tmp_path / "model", f"{kind}{head}", f"{kind}Config", **settings))
    assert [name for name in task.fresh_parameters if "classifier" in name]
    assert any("classifier" in name for name in task.new_layers)
    assert task._loaded.config.id2label == dict(enumerate(ORDERS[0]))


def test_a_run_says_which_layers_are_new(tmp_path, start_ranks):
    folder = save(tmp_path / "model", "BertModel", "BertConfig", **KINDS["Bert"])
    done = start_ranks("bert_baseline.py", "--sample", "--model", folder, "--num_gpus", "1", "--max_seq_length", "64",
                       "--max_steps", "1", "--max_eval_examples", "4", "--output_dir", tmp_path, check=True)
    assert f"{folder} has no weights for qa_outputs; initialized at random\n" in done.stdout


def test_the_files_that_are_read_are_those_that_are_checked_and_hashed(answering):
    from workload.digests import content_of

    def digest():
        return content_of(opened("squad_v2", answering))["model"]

    whole = load_file(answering / "model.safetensors")
    first = {key: value for key, value in whole.items() if "layer.0." in key}
    rest = {key: value for key, value in whole.items() if key not in first}
    (answering / "model.safetensors").unlink()
    for name, part in (("part1", first), ("part2", rest)):
        save_file(part, answering / f"{name}.safetensors", {"format": "pt"})
    names = {key: "part1.safetensors" if key in first else "part2.safetensors" for key in whole}
    (answering / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    before = digest()
    save_file({key: value + 1 for key, value in rest.items()}, answering / "part2.safetensors", {"format": "pt"})
    assert digest() != before

    save_file(whole, answering / "other.safetensors", {"format": "pt"})
    change_config(answering, transformers_weights="other.safetensors")
    before = digest()
    save_file({key: value * 2 for key, value in whole.items()}, answering / "other.safetensors", {"format": "pt"})
    assert digest() != before
    (answering / "other.safetensors").write_text(POINTER)
    assert "other.safetensors is a git-lfs pointer" in refusal("squad_v2", answering)


def test_fewer_layers_in_the_configuration_than_in_the_weights_are_refused(answering):
    change_config(answering, num_hidden_layers=1)
    assert "hold bert.encoder.layer.1." in refusal("squad_v2", answering)


@pytest.mark.parametrize("change, file", [
    (lambda s: s, "model.safetensors"),
    (lambda s: {key: value.half() for key, value in s.items()}, "model.safetensors"),
    (lambda s: {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
                for key, value in s.items()}, "pytorch_model.bin"),
    (lambda s: {key.removeprefix("bert."): value for key, value in s.items()}, "model.safetensors"),
])
def test_weights_in_other_forms_are_loaded(answering, change, file):
    stored = load_file(answering / "model.safetensors")
    change_weights(answering, change, file)
    task = opened("squad_v2", answering)
    loaded = task.build_model().state_dict()
    assert task.fresh_parameters == []
    for name, value in stored.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=1e-3)


def test_sharded_weights_are_loaded_and_a_missing_shard_is_named(answering):
    stored = load_file(answering / "model.safetensors")
    transformers.BertForQuestionAnswering.from_pretrained(answering).save_pretrained(answering, max_shard_size="50KB")
    (answering / "model.safetensors").unlink(missing_ok=True)
    loaded = opened("squad_v2", answering).build_model().state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    next(answering.glob("model-00002-*")).unlink()
    assert "model-00002-of-" in refusal("squad_v2", answering)


@pytest.mark.parametrize("architecture", ["BertModel", "BertForPreTraining", "BertForMaskedLM"])
def test_a_fresh_head_may_be_missing_and_is_recorded(tmp_path, architecture):
    folder = save(tmp_path / "model", architecture)
    stored = load_file(folder / "model.safetensors")
    task = opened("squad_v2", folder)
    loaded = task.build_model().bert.state_dict()
    assert task.model_record["initialised"] == ["qa_outputs.bias", "qa_outputs.weight"]
    assert all(torch.equal(value, stored.get(name, stored.get(f"bert.{name}"))) for name, value in loaded.items())

    task = opened("mnli", folder)
    task.build_model()
    pooler = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"] * (architecture == "BertForMaskedLM")
    assert task.model_record["initialised"] == [*pooler, "classifier.bias", "classifier.weight"]


# ---------------------------------------------------------------------- files that cannot be read

@pytest.mark.parametrize("content, said", [
    (POINTER.encode(), "git-lfs pointer"), (b"", "fetch or save"), (b"<!DOCTYPE html>404", "fetch or save"),
    (None, "cut off")])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_unreadable_weights_are_refused_before_processes_start(answering, file, content, said):
    change_weights(answering, lambda s: s, file)
    path = answering / file
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2] if content is None else content)
    with pytest.raises(InputError, match=f"{file}.*{said}"):  # the launcher opens the task
        open_task(parse_arguments(Arguments, ["--sample", "--model", str(answering)]))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_pointer_in_place_of_any_file_is_named(answering, file):
    (answering / file).write_text(POINTER)
    assert f"{file} is a git-lfs pointer" in refusal("squad_v2", answering)


def test_a_folder_without_weights_is_refused(answering):
    (answering / "model.safetensors").unlink()
    assert "--from_scratch true" in refusal("squad_v2", answering)
    assert opened("squad_v2", answering, "--from_scratch", "true").build_model() is not None


@pytest.mark.parametrize("settings", [
    {"hidden_act": "nope"}, {"hidden_size": "32"}, {"num_attention_heads": 5}, {"hidden_dropout_prob": 1.5},
    {"id2label": ["a", "b"]}, {"pad_token_id": 5000}, {"hidden_size": -32}])
@pytest.mark.parametrize("from_scratch", ["true", "false"])
def test_an_impossible_configuration_is_one_line(entailing, settings, from_scratch):
    change_config(entailing, **settings)
    assert refusal("mnli", entailing, "--from_scratch", from_scratch).startswith(f"--model {entailing}: ")


def test_the_attention_that_a_model_was_saved_with_does_not_matter(entailing):
    change_config(entailing, attn_implementation="flash_attention_2")
    assert opened("mnli", entailing).build_model().config._attn_implementation.startswith("sdpa")


# ---------------------------------------------------------------------- heads

ORDERS = [("entailment", "neutral", "contradiction"), ("contradiction", "neutral", "entailment"),
          ("neutral", "contradiction", "entailment")]


def named(names, case=str, by="id2label"):
    names = [case(name) for name in names]
    id2label = {str(number): name for number, name in enumerate(names)}
    label2id = {name: number for number, name in enumerate(names)}
    if "unnamed" in by:
        id2label = {number: f"LABEL_{number}" for number in id2label}
    return {"id2label": id2label if "id2label" in by else None, "label2id": label2id if "label2id" in by else None}


@pytest.mark.parametrize("order, case, by", [
    (ORDERS[1], str.upper, "id2label label2id"), (ORDERS[2], str.title, "id2label"),
    (ORDERS[2], str.lower, "label2id"), (ORDERS[1], str.lower, "unnamed id2label label2id")])
def test_a_heads_own_order_is_kept(entailing, order, case, by):
    """A classifier stored with its labels in another order gives the same losses and predictions."""
    task = opened("mnli", entailing)
    inputs, labels = first_batch(task)
    model = task.build_model().eval()
    expected = task.loss(task.logits(model, inputs), labels)

    rows = [ORDERS[0].index(name) for name in order]  # new order of the head's rows
    change_weights(entailing, lambda s: s | {key: s[key][rows].contiguous()
                                             for key in ("classifier.weight", "classifier.bias")})
    change_config(entailing, **named(order, case, by))
    other = opened("mnli", entailing)
    inputs, labels = first_batch(other)
    stored = other.build_model().eval()
    logits = other.logits(stored, inputs)
    torch.testing.assert_close(other.loss(logits, labels), expected)
    judged = dict(enumerate(torch.eye(3)[labels["label"]].numpy()))  # the correct output is the largest
    judged |= dict.fromkeys(range(len(judged), len(other.samples("validation"))), judged[0])
    _, predictions = other.score(judged)
    examples = other.examples["validation"][:8]
    assert list(predictions.values())[:8] == [other.classes[label] for label in examples["label"]]
    assert [name.lower() for name in other.model_record["outputs"]] == list(order)
    assert other.model_record["outputs_named_by"] == "the model"
    assert list(stored.config.id2label.values()) == [case(name) for name in order]


@pytest.mark.parametrize("names", [None, [f"label_{number}" for number in range(3)]])
def test_a_head_that_names_no_classes_is_taken_in_the_tasks_order_and_says_so(entailing, names):
    change_config(entailing, **named(names or ["x"], by="id2label" if names else ""))
    task = opened("mnli", entailing)
    model = task.build_model()
    assert task.model_record["outputs"] == list(ORDERS[0]) and task.model_record["outputs_named_by"] == "the task"
    assert model.config.id2label == dict(enumerate(ORDERS[0]))


@pytest.mark.parametrize("settings, said", [
    (named(("negative", "neutral", "positive"), by="id2label label2id"), "tells apart negative, neutral, positive"),
    (named(("entailment", "entailment", "neutral")), "tells apart"),
    ({**named(ORDERS[0]), "label2id": named(ORDERS[1], by="label2id")["label2id"]}, "contradict each other")])
def test_a_head_that_cannot_be_mapped_is_refused(entailing, settings, said):
    change_config(entailing, **settings)
    assert said in refusal("mnli", entailing)


def test_a_head_of_another_size_is_refused_with_its_name_and_sizes(tmp_path):
    folder = save(tmp_path / "model", num_labels=2)
    line = refusal("mnli", folder)
    assert "classifier.bias is (2,), but (3,)" in line and "above" not in line


def test_classes_that_only_the_configuration_of_a_headless_model_names_do_not_matter(entailing):
    change_weights(entailing, lambda s: {key: value for key, value in s.items() if "classifier" not in key})
    change_config(entailing, **named(("negative", "neutral", "positive")))
    task = opened("mnli", entailing)
    assert task.build_model().config.id2label == dict(enumerate(ORDERS[0]))


def test_sentiment_heads_are_mapped_by_their_names(tmp_path):
    folder = save(tmp_path / "model", num_labels=2)
    change_config(folder, **named(("POSITIVE", "NEG")))
    task = opened("imdb", folder)
    task.build_model()
    assert task.order == [1, 0] and task.model_record["outputs"] == ["positive", "negative"]


# ---------------------------------------------------------------------- kinds of models

@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_runs_and_its_attention_is_recorded(tmp_path, kind):
    folder = save(tmp_path / "model", f"{kind}ForSequenceClassification", f"{kind}Config", num_labels=3, **KINDS[kind])
    task = opened("mnli", folder)
    inputs, labels = first_batch(task)
    model = task.build_model()
    loss = task.loss(task.logits(model, inputs), labels).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert task.model_record["attention"] == ("eager" if kind in EAGER else "sdpa_with_packed_dropout")


@pytest.mark.parametrize("kind, settings", [
    ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    ("XLNet", {"d_model": 32, "n_layer": 2, "n_head": 2, "max_position_embeddings": None}),
    ("T5", {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64}), ("OPT", {})])
def test_what_is_no_encoder_is_refused_by_classification(tmp_path, kind, settings):
    folder = save(tmp_path / "model", f"{kind}ForSequenceClassification", f"{kind}Config", num_labels=3, **settings)
    assert "is no encoder" in refusal("mnli", folder)


def test_a_model_with_fewer_positions_than_it_says_is_refused(tmp_path):
    """RoBERTa's positions begin after the padding token's index. Its own tokenizer would have limited the length."""
    folder = save(tmp_path / "model", "RobertaForSequenceClassification", "RobertaConfig", num_labels=3,
                  type_vocab_size=1, max_position_embeddings=LENGTH)
    assert "cannot do this task" in refusal("mnli", folder)


def test_a_tokenizer_without_token_types_and_a_fresh_head_train_the_same_everywhere(tmp_path, start_ranks):
    folder = save(tmp_path / "model", "BertForPreTraining", type_vocab_size=2)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {
        "model_input_names": ["input_ids", "attention_mask"]}))
    assert not opened("mnli", folder).has_token_types
    flags = ["--sample", "--task", "mnli", "--model", folder, "--max_seq_length", LENGTH, "--max_steps", 2,
             "--dropout", 0, "--global_batch_size", 8, "--max_eval_examples", 8, "--cpu_threads", 1,
             "--noise_scale_steps", 0, "--output_dir", tmp_path]
    losses = {}
    for script in ("bert_baseline.py", "pipeline.py", "torch_pipeline.py"):
        start_ranks(script, *flags, "--num_gpus", 2, "--run_name", script, count=2, check=True)
        with open(tmp_path / script / "evaluations.csv", newline="") as file:
            losses[script] = float(list(csv.DictReader(file))[-1]["validation_loss"])
        record = json.loads((tmp_path / script / "run.json").read_text())["model"]
        assert record["initialised"] == ["classifier.bias", "classifier.weight"]
        assert record["outputs"] == list(ORDERS[0]) and record["outputs_named_by"] == "the task"
        assert record["attention"].startswith("sdpa")
    assert list(losses.values()) == pytest.approx([losses["bert_baseline.py"]] * 3, abs=1e-6)


# ---------------------------------------------------------------------- tokenizers

@pytest.mark.parametrize("task, settings", [("imdb", {"truncation_side": "left"}), ("oscar", {"eos_token": "the"})])
def test_what_a_tokenizer_does_besides_its_file_is_part_of_the_caches_key(tmp_path, task, settings):
    tiny, flags = {"imdb": "tiny_encoder", "oscar": "tiny_gpt2"}[task], ("--max_seq_length", "16")
    folders = [shutil.copytree(ROOT / "data" / tiny, tmp_path / name) for name in ("before", "after")]
    path = folders[1] / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    made = []
    for folder in folders:
        made.append(open_task(parse_arguments(Arguments, ["--task", task, "--sample", "--model", "tiny", "--tokenizer",
                                                          str(folder), *flags])))
        made[-1].load()
    assert made[0].samples("train")["input_ids"][:] != made[1].samples("train")["input_ids"][:]


def test_a_cased_vocabulary_alone_is_not_lowered(entailing):
    whole = opened("mnli", entailing).tokenizer("A Cat sat, Émile.")["input_ids"]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (entailing / file).unlink()
    assert opened("mnli", entailing).tokenizer("A Cat sat, Émile.")["input_ids"] == whole


def test_an_uncased_vocabulary_alone_is_lowered(tmp_path):
    folder = save(tmp_path / "model", num_labels=3, vocab_size=vocabulary_size("tiny_bert"))
    copy_tokenizer(folder, "tiny_bert")
    whole = opened("mnli", folder).tokenizer("A Cat sat, Émile.")["input_ids"]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert opened("mnli", folder).tokenizer("A Cat sat, Émile.")["input_ids"] == whole


@pytest.mark.parametrize("from_scratch", ["true", "false"])
def test_a_vocabulary_with_a_hole_keeps_its_numbers(entailing, from_scratch):
    words = (entailing / "vocab.txt").read_text().splitlines()
    words[500] = words[501]  # the first of the two numbers is never used
    (entailing / "vocab.txt").write_text("\n".join(words) + "\n")
    (entailing / "tokenizer.json").unlink()
    task = opened("mnli", entailing, "--from_scratch", from_scratch)
    model = task.build_model()
    assert len(task.tokenizer) == len(words) - 1 and task.config.vocab_size == len(words)
    last = torch.tensor([[len(words) - 1]])
    assert task.logits(model, {"input_ids": last, "attention_mask": torch.ones_like(last)}).isfinite().all()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(answering):
    tokenizer = transformers.AutoTokenizer.from_pretrained(answering)
    tokenizer.add_tokens(["<e1>", "</e1>"])
    tokenizer.save_pretrained(answering)
    assert "resize_token_embeddings" in refusal("squad_v2", answering)


def test_tokenizers_without_what_a_task_needs_are_refused(tmp_path, entailing):
    def without(folder, *keys):
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in settings.items() if key not in keys}))

    gpt2 = shutil.copytree(ROOT / "data" / "tiny_gpt2", tmp_path / "gpt2")
    scratch = ["--from_scratch", "true"]
    assert "does not put [CLS] first" in refusal("squad_v2", entailing, "--tokenizer", str(gpt2), *scratch)
    assert "no padding token" in refusal("imdb", entailing, "--tokenizer", str(gpt2), *scratch)
    change = json.loads((gpt2 / "tokenizer_config.json").read_text())
    (gpt2 / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                            "model_max_length": change["model_max_length"]}))
    assert "no end-of-text token" in refusal("oscar", gpt2, *scratch)

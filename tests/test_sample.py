"""python -m pytest tests/test_sample.py

The embedded samples are what make_sample.py writes, and those for IMDB, MNLI and OSCAR are sound: their formats are
those of the full data sets, train and eval share nothing, and their tokenizers fit them. SQuAD: test_squad_sample.py.
"""

import csv
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

DATA = Path(__file__).parent.parent / "data"
FOLDERS = ["squad_v2", "tiny_bert", "imdb", "tiny_encoder", "mnli", "tiny_bert_cased", "oscar", "tiny_gpt2"]
MNLI_SPLITS = {"train": 1, "dev_matched": 5, "dev_mismatched": 5}  # with the number of annotators' labels
AMOUNTS = ["few", "handful", "doz", "hundred"]
NUMBERS = ["fewer", "four ", "five ", "six ", "forty", "fifty", "sixty", "hundred"]


def read_imdb(split):
    with open(DATA / "imdb" / f"{split}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def read_mnli(split):
    with open(DATA / "mnli" / f"{split}.tsv", encoding="utf-8") as file:
        header, *rows = (line.rstrip("\n").split("\t") for line in file)
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_oscar(split):
    text = (DATA / "oscar" / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def imdb():
    return {split: read_imdb(split) for split in ("train", "eval")}


@pytest.fixture(scope="module")
def mnli():
    return {split: read_mnli(split) for split in MNLI_SPLITS}


@pytest.fixture(scope="module")
def oscar():
    return {split: read_oscar(split) for split in ("train", "eval")}


def pairs_of(rows):
    return {(row["sentence1"], row["sentence2"]) for row in rows}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, "-B", DATA / "make_sample.py", "--output_dir", tmp_path], check=True)
    for folder in FOLDERS:
        names = sorted(path.name for path in (DATA / folder).iterdir())
        assert names and names == sorted(path.name for path in (tmp_path / folder).iterdir())
        for name in names:
            assert (tmp_path / folder / name).read_bytes() == (DATA / folder / name).read_bytes(), (folder, name)


def test_imdb_has_both_labels_equally_often(imdb):
    assert {split: len(rows) for split, rows in imdb.items()} == {"train": 1600, "eval": 400}
    for rows in imdb.values():
        assert all(set(row) == {"text", "label"} for row in rows)
        assert Counter(row["label"] for row in rows) == {"0": len(rows) // 2, "1": len(rows) // 2}


def test_imdb_needs_a_csv_reader_and_more_than_single_words(imdb):
    texts = [row["text"] for row in imdb["train"]]
    assert any('"' in text and "," in text for text in texts)
    for word in ("boring", "moving", "not", "recommend"):  # each in reviews of both labels
        labels = {row["label"] for row in imdb["train"] if f" {word}" in row["text"]}
        assert labels == {"0", "1"}, word


def test_imdb_train_and_eval_share_no_review_and_no_film(imdb):
    titles = runpy.run_path(str(DATA / "words.py"))["titles"]()
    films = {}
    for split, rows in imdb.items():
        texts = {row["text"] for row in rows}
        assert len(texts) == len(rows)
        assert all(any(title in text for title in titles) for text in texts)  # so that no text is in both
        films[split] = {title for title in titles if any(title in text for text in texts)}
    assert not films["train"] & films["eval"]


@pytest.mark.parametrize("split, annotators", MNLI_SPLITS.items())
def test_mnli_has_the_columns_of_glue(mnli, split, annotators):
    labels = [f"label{number}" for number in range(1, annotators + 1)]
    assert list(mnli[split][0]) == [
        "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
        "sentence2_parse", "sentence1", "sentence2", *labels, "gold_label",
    ]  # fmt: skip
    assert [row["index"] for row in mnli[split]] == [str(number) for number in range(len(mnli[split]))]
    assert all(row["sentence1"] and row["sentence2"] for row in mnli[split])


def test_mnli_has_every_label_equally_often(mnli):
    assert {split: len(rows) for split, rows in mnli.items()} == {
        "train": 3000, "dev_matched": 300, "dev_mismatched": 300,
    }  # fmt: skip
    for rows in mnli.values():
        third = len(rows) // 3
        counts = Counter(row["gold_label"] for row in rows)
        assert counts == {"entailment": third, "neutral": third, "contradiction": third}


def test_mnli_splits_share_no_pair_and_mismatched_genres_are_new(mnli):
    pairs = [pairs_of(rows) for rows in mnli.values()]
    assert len(set.union(*pairs)) == sum(len(rows) for rows in mnli.values())
    genres = {split: {row["genre"] for row in rows} for split, rows in mnli.items()}
    assert genres["dev_matched"] == genres["train"]
    assert not genres["dev_mismatched"] & genres["train"]


def test_mnli_labels_need_both_sentences(mnli):
    """What a sentence's words for amounts say about the label, without the other sentence, is far from all."""
    for sentence, words in (("sentence1", AMOUNTS), ("sentence2", NUMBERS)):
        counts = Counter()
        for row in mnli["train"]:
            counts[tuple(word for word in words if word in row[sentence]), row["gold_label"]] += 1
        best = {}
        for (seen, _), count in counts.items():
            best[seen] = max(best.get(seen, 0), count)
        assert 0.4 <= sum(best.values()) / len(mnli["train"]) <= 0.65, sentence


def test_oscar_has_the_layout_of_23_01(oscar):
    for document in oscar["train"] + oscar["eval"]:
        assert set(document) == {"content", "warc_headers", "metadata"}
        assert document["content"].count("\n") >= 2
        assert document["warc_headers"]["warc-target-uri"].startswith("https://")
        assert document["metadata"]["identification"]["label"] == "en"


def test_oscar_train_and_eval_are_about_different_things(oscar):
    assert len(oscar["train"]) >= 300 and len(oscar["eval"]) >= 30
    sites = {split: {document["warc_headers"]["warc-target-uri"] for document in oscar[split]} for split in oscar}
    names = {split: {re.match("https://([a-z]+-[a-z]+)-", site)[1] for site in sites[split]} for split in oscar}
    assert not names["train"] & names["eval"]
    contents = {split: {document["content"] for document in oscar[split]} for split in oscar}
    assert not contents["train"] & contents["eval"]


@pytest.mark.parametrize("folder, model_type", [
    ("tiny_encoder", "encoder_classifier"), ("tiny_bert_cased", "bert"), ("tiny_gpt2", "gpt2"),
])  # fmt: skip
def test_a_model_folder_has_a_configuration_and_a_fast_tokenizer(folder, model_type):
    config = json.loads((DATA / folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(DATA / folder)
    assert tokenizer.is_fast
    assert config["model_type"] == model_type
    assert config["vocab_size"] == len(tokenizer)
    positions = config["n_positions" if model_type == "gpt2" else "max_position_embeddings"]
    assert tokenizer.model_max_length == positions


def test_imdb_fits_its_tokenizer(imdb):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny_encoder")
    encoded = tokenizer([row["text"] for row in imdb["train"] + imdb["eval"]])["input_ids"]
    lengths = [len(ids) for ids in encoded]
    assert max(lengths) <= 128 and max(lengths) >= 4 * min(lengths)
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("Fine") == tokenizer.tokenize("fine")


def test_mnli_fits_its_cased_tokenizer(mnli):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny_bert_cased")
    rows = [row for split in mnli for row in mnli[split]]
    encoded = tokenizer([row["sentence1"] for row in rows], [row["sentence2"] for row in rows])["input_ids"]
    assert max(len(ids) for ids in encoded) <= 128
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert all(ids.count(tokenizer.sep_token_id) == 2 for ids in encoded)
    assert tokenizer.tokenize("There") != tokenizer.tokenize("there")


def test_the_byte_level_tokenizer_gives_every_text_back(oscar):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny_gpt2")
    texts = [document["content"] for document in oscar["eval"]] + ["Zoë paid 5 €.\n\n  日本\t", " Hi , there ."]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    config = json.loads((DATA / "tiny_gpt2" / "config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer("<|endoftext|>")["input_ids"] == [config["bos_token_id"]]

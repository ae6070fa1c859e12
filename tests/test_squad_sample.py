"""python -m pytest tests/test_squad_sample.py

The embedded sample for SQuAD is sound SQuAD v2.0, and its tokenizer fits it. test_sample.py has the other samples.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

DATA = Path(__file__).parent.parent / "data"


def read_paragraphs(split):
    content = json.loads((DATA / "squad_v2" / f"{split}.json").read_text())
    assert content["version"] == "v2.0"
    return [paragraph for article in content["data"] for paragraph in article["paragraphs"]]


@pytest.fixture(scope="module")
def paragraphs():
    return {split: read_paragraphs(split) for split in ("train", "eval")}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "tiny_bert")


def questions_of(paragraphs):
    return [question for paragraph in paragraphs for question in paragraph["qas"]]


def test_every_answer_stands_where_it_is_said_to_stand(paragraphs):
    for paragraph in paragraphs["train"] + paragraphs["eval"]:
        for question in paragraph["qas"]:
            assert question["is_impossible"] == (not question["answers"])
            for answer in question["answers"]:
                start = answer["answer_start"]
                assert paragraph["context"][start : start + len(answer["text"])] == answer["text"] != ""


def test_counts(paragraphs):
    questions = {split: questions_of(paragraphs[split]) for split in paragraphs}
    assert len(questions["train"]) == pytest.approx(2000, rel=0.05)
    assert len(questions["eval"]) == pytest.approx(400, rel=0.05)
    ids = [question["id"] for split in questions for question in questions[split]]
    assert len(set(ids)) == len(ids)
    for split in questions:
        unanswerable = sum(question["is_impossible"] for question in questions[split])
        assert 0.30 <= unanswerable / len(questions[split]) <= 0.37


def test_train_has_one_answer_and_eval_several(paragraphs):
    answerable = {
        split: [question for question in questions_of(paragraphs[split]) if question["answers"]]
        for split in paragraphs
    }
    assert all(len(question["answers"]) == 1 for question in answerable["train"])
    for question in answerable["eval"]:
        assert len({answer["text"] for answer in question["answers"]}) >= 2


def test_train_and_eval_share_no_paragraph_and_no_fact(paragraphs):
    contexts = {split: {paragraph["context"] for paragraph in paragraphs[split]} for split in paragraphs}
    assert not contexts["train"] & contexts["eval"]
    answers = {
        split: {answer["text"] for question in questions_of(part) for answer in question["answers"]}
        for split, part in paragraphs.items()
    }
    assert not answers["train"] & answers["eval"]


def test_the_tokenizer_is_a_fast_bert_tokenizer(tokenizer):
    assert tokenizer.is_fast
    assert tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 512
    encoded = tokenizer("Who painted it?", "Ada Holt.")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[0] == "[CLS]" and tokens.count("[SEP]") == 2 and tokens[-1] == "[SEP]"
    question_length = tokens.index("[SEP]") + 1
    assert encoded["token_type_ids"] == [0] * question_length + [1] * (len(tokens) - question_length)
    config = json.loads((DATA / "tiny_bert" / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)


def test_lengths_vary_and_fit_one_window(paragraphs, tokenizer):
    everything = paragraphs["train"] + paragraphs["eval"]
    lengths = [len(tokenizer.tokenize(paragraph["context"])) for paragraph in everything]
    assert max(lengths) >= 4 * min(lengths)
    for paragraph in everything:
        for question in paragraph["qas"]:
            assert len(tokenizer(question["question"], paragraph["context"])["input_ids"]) <= 128


def test_the_vocabulary_covers_the_eval_text(paragraphs, tokenizer):
    texts = [paragraph["context"] for paragraph in paragraphs["eval"]]
    texts += [question["question"] for question in questions_of(paragraphs["eval"])]
    assert all(tokenizer.unk_token not in tokenizer.tokenize(text) for text in texts)

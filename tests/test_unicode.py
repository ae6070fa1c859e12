"""Answers in any script: places are counted in code points, whatever stands before, in and behind an answer."""

import json
import shutil
import unicodedata

import numpy as np
import pytest

from tests.shared.answer_spans import check_windows, held_part, plain
from tests.shared.mutations import count_outcomes
from tests.shared.runs import ROOT
from tests.shared.small_inputs import load, open_small, tokenise
from workload.tasks.squad_score import predict_answers, score_answers

pytestmark = pytest.mark.usefixtures("cache")
PIECES = [
    "red", "1,5", "Fox", "\u2014", "\u2026", ".", " ", " ", "\t", "\n", "\u00a0", "\u2009", "\u2028", "\u3000",
    "\U0001f600", "\U0001d49c\U0001d505", "\U0001f469\u200d\U0001f4bb", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f", "\U00020bb7",  # a heart with a variation selector; a Chinese character beyond 16 bits
    "e\u0301", "\u00e9", "n\u0303", "q\u0323\u0307", "\u1ed9", "\u212b", "\u0301", "\ufb01", "\u0130", "\u1e9e",
    "\u03a3", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05c1\u05b8", "\u0645\u0631\u062d\u0628\u0627", "\u0628\u0650",
    "\u200f", "\u202e", "\u2067\u05d0\u2069", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\0",
    "\ufffd", "\ud55c\uad6d", "\uac04\ub2e4", "\u4eac\u90fd", "\u304c", "\u0915\u094d\u0937\u093f", "\u0e01\u0e33",
    "[SEP]",
]
FORMS = ["NFC", "NFD", None]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Of a model whose every letter is a token, so that an answer can begin and end anywhere."""
    folder, tiny = tmp_path_factory.mktemp("letters"), ROOT / "data" / "tiny_bert"
    letters = sorted(set(plain("".join(PIECES))))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    shutil.copy(tiny / "tokenizer_config.json", folder)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(words)}), encoding="utf-8")
    return open_small("squad_v2", folder, "--model", str(folder), "--from_scratch", "true", "--max_seq_length", "48",
                      "--doc_stride", "24")


def some_text(chance, most):
    text = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, most)))
    form = chance.choice(FORMS)
    return unicodedata.normalize(form, text) if form else text


def test_answers_keep_their_places_in_any_script(task, tmp_path_factory):
    path = tmp_path_factory.mktemp("unicode") / "squad.json"

    def check(chance):
        answer = some_text(chance, 3)
        before = chance.choice(["", some_text(chance, 40)]) + chance.choice(["", " "])
        behind = chance.choice(["", " "]) + chance.choice(["", some_text(chance, 40)])
        begin, end = held_part(len(before), answer)
        if begin == end:
            return "nothing held"
        context = before + answer + behind
        question = {"id": "q", "question": some_text(chance, 3), "is_impossible": False,
                    "answers": [{"text": answer, "answer_start": len(before)}]}
        document = {"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}
        path.write_text(json.dumps(document, ensure_ascii=chance.random() < 0.5), encoding="utf-8")
        examples = load(task, str(path), answerable_only=False)
        assert examples["context"] == [context]
        features = tokenise(task, examples)
        if not check_windows(task, examples, features):
            assert len(task.tokenizer.tokenize(answer)) > task.stride, "some window holds a short answer"
            return "too long"
        unknown = task.tokenizer.unk_token in task.tokenizer.tokenize(context)
        rows = [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
        asked = [{"id": "q", "context": context, "answers": {"text": [context[begin:end]]}}]
        logits = {row: np.zeros((feature["length"], 2), dtype=np.float32) for row, feature in enumerate(rows)}
        for row, feature in enumerate(rows):
            if feature["start"]:
                logits[row][feature["start"], 0] = logits[row][feature["end"], 1] = 9
                offsets = feature["offsets"]
                assert unknown or (offsets[feature["start"]][0], offsets[feature["end"]][1]) == (begin, end)
        predicted = predict_answers(asked, rows, logits, null_answers=True)
        if unknown or len(task.tokenizer.tokenize(answer)) > 30:  # tokens, the most that an answer may have
            return "in part"
        assert predicted == {"q": context[begin:end]}
        assert score_answers(asked, predicted) == {"exact_match": 100, "f1": 100}
        return "whole"

    outcomes = count_outcomes(300, check)
    assert outcomes["whole"] > 100, outcomes

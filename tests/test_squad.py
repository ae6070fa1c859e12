"""SQuAD from the file to the score: what is read and refused, windows, answers, losses, and the cache."""

import json
import math
import os
import random
import shutil
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError
from workload.tasks.files import file_digest
from workload.tasks.squad_files import read_squad
from workload.tasks.squad_score import best_span, normalize_answer, predict_answers, score_answers, token_f1
from workload.tasks.squad_v2 import SquadV2

ROOT = Path(__file__).resolve().parents[1]
TINY_FOLDER = ROOT / "data" / "tiny_bert"
MISSING = object()
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A local model folder whose every letter is a token, so that known answers do not hang on a vocabulary."""
    folder = tmp_path_factory.mktemp("letters")
    shown = string.ascii_lowercase + string.digits + "אבגדהוזחטיכלמםנןעשת" + "ابحرمكلت" + "京都"
    korean = unicodedata.normalize("NFD", "한국나라간다")
    # The last piece reaches from within one syllable into the next, as pieces of multilingual vocabularies do.
    pieces = [*shown, *sorted(set(korean)), korean[-4:-1]]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *pieces, *(f"##{p}" for p in pieces)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    shutil.copy(TINY_FOLDER / "tokenizer_config.json", folder)
    config = json.loads((TINY_FOLDER / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(words)}), encoding="utf-8")
    return str(folder)


def ask(question_id, context, *texts, question="Who wrote it?", at=None):
    """A question of a SQuAD file; each answer is placed where the context has it first."""
    answers = [{"text": text, "answer_start": context.index(text) if at is None else at} for text in texts]
    return {"id": question_id, "question": question, "is_impossible": not answers, "answers": answers}


def write_squad(path, *paragraphs):
    """A SQuAD file of (context, questions) pairs."""
    made = [{"context": context, "qas": list(questions)} for context, questions in paragraphs]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "A", "paragraphs": made}]}), encoding="utf-8")
    return str(path)


def open_squad(train, *flags, evaluation=None, model="tiny"):
    files = ["--train_file", str(train), "--eval_file", str(evaluation or train)]
    return SquadV2(parse_arguments(Arguments, [*files, "--model", model, "--from_scratch", "true", *map(str, flags)]))


def load_squad(train, *flags, **options):
    task = open_squad(train, *flags, **options)
    task.load()
    return task


def random_words(generator, count):
    return ["".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 6))) for _ in range(count)]


# ---------------------------------------------------------------------- files

ADA = "Ada wrote it in London."
TWO_QUESTIONS = [ask("q1", ADA, "Ada", "London"), ask("q2", ADA, question="  Who read it?")]


def test_version_2_is_read_as_it_is_written(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS), ("Nobody.", [ask("q3", "Nobody.", "Nobody")]))
    assert list(read_squad(path, answerable_only=False)) == [
        {"id": "q1", "question": "Who wrote it?", "context": ADA,
         "answers": {"text": ["Ada", "London"], "answer_start": [0, 16]}},
        {"id": "q2", "question": "Who read it?", "context": ADA, "answers": {"text": [], "answer_start": []}},
        {"id": "q3", "question": "Who wrote it?", "context": "Nobody.",
         "answers": {"text": ["Nobody"], "answer_start": [0]}},
    ]


def test_version_1_1_is_read_without_is_impossible(tmp_path):
    question = {name: value for name, value in ask("q1", ADA, "London").items() if name != "is_impossible"}
    path = write_squad(tmp_path / "squad.json", (ADA, [question]))
    assert [row["answers"] for row in read_squad(path, False)] == [{"text": ["London"], "answer_start": [16]}]
    assert open_squad(path).data_digest["train"] == file_digest(path)


def test_training_and_evaluation_questions_come_from_their_own_file(tmp_path):
    train = write_squad(tmp_path / "train.json", (ADA, TWO_QUESTIONS))
    evaluation = write_squad(tmp_path / "eval.json", ("Nobody.", [ask("e1", "Nobody.", "Nobody")]))
    task = load_squad(train, evaluation=evaluation)
    assert task.examples["train"]["id"][:] == ["q1", "q2"]
    assert task.examples["validation"]["id"][:] == ["e1"]


def test_answerable_only_leaves_the_unanswerable_out(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    task = load_squad(path, "--answerable_only")
    assert [task.examples[split]["id"][:] for split in ("train", "validation")] == [["q1"], ["q1"]]
    assert load_squad(path).examples["train"]["id"][:] == ["q1", "q2"], "the cache must tell the two apart"


@pytest.mark.parametrize("missing", ["train.json", "eval.json"])
def test_a_missing_file_is_named(tmp_path, missing):
    for name in {"train.json", "eval.json"} - {missing}:
        write_squad(tmp_path / name, (ADA, TWO_QUESTIONS))
    with pytest.raises(InputError, match="no such file") as raised:
        open_squad(tmp_path / "train.json", evaluation=tmp_path / "eval.json")
    assert str(tmp_path / missing) in str(raised.value)


@pytest.mark.parametrize("content, told", [
    (b"", "not JSON (line 1, column 1"),
    (b'{"data": [\n  {"paragraphs": ]\n}', "not JSON (line 2, column 18"),
    (b'{"data": [', "not JSON (line 1, column 11"),
    (b'{"data": "caf\xe9"}', "not UTF-8 text (line 1, byte 14)"),
    (b"[" * 200_000, "JSON nested too deeply"),
    (b'{"data": [' + b"1" * 5000 + b"]}", "JSON with a number of too many digits"),
])
def test_what_is_not_json_is_refused_with_its_place(tmp_path, content, told):
    good, bad = write_squad(tmp_path / "good.json", (ADA, TWO_QUESTIONS)), tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(InputError) as raised:
        open_squad(good, evaluation=bad)
    assert str(raised.value).startswith(f"{bad}: {told}")


PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)
ANSWER = (*QUESTION, "answers", 0)


@pytest.mark.parametrize("where, value, told", [
    ((), [], "the top level should be an object, not a list"),
    ((), "text", "the top level should be an object, not a string"),
    (("data",), MISSING, "data is missing"),
    (("data",), {}, "data should be a list, not an object"),
    (("data", 0), 7, "data[0] should be an object, not a whole number"),
    (("data", 0, "paragraphs"), MISSING, "data[0].paragraphs is missing"),
    (("data", 0, "paragraphs"), "text", "data[0].paragraphs should be a list, not a string"),
    ((*PARAGRAPH, "context"), None, "data[0].paragraphs[0].context should be a string, not null"),
    ((*PARAGRAPH, "context"), MISSING, "data[0].paragraphs[0].context is missing"),
    ((*PARAGRAPH, "context"), "half \ud83d", "data[0].paragraphs[0].context holds half of a surrogate pair"),
    ((*PARAGRAPH, "qas"), MISSING, "data[0].paragraphs[0].qas is missing"),
    ((*PARAGRAPH, "qas", 1), "text", "data[0].paragraphs[0].qas[1] should be an object, not a string"),
    ((*QUESTION, "id"), MISSING, "data[0].paragraphs[0].qas[0].id is missing"),
    ((*QUESTION, "id"), 7, "data[0].paragraphs[0].qas[0].id should be a string, not a whole number"),
    ((*PARAGRAPH, "qas", 1, "id"), "q1", "data[0].paragraphs[0].qas[1].id 'q1' occurs twice"),
    ((*QUESTION, "question"), ["Who?"], "data[0].paragraphs[0].qas[0].question should be a string, not a list"),
    ((*QUESTION, "is_impossible"), 0, "qas[0].is_impossible should be true or false, not a whole number"),
    ((*QUESTION, "is_impossible"), True, "question 'q1': is_impossible is true, but it has 2 answers"),
    ((*PARAGRAPH, "qas", 1, "is_impossible"), False, "question 'q2': is_impossible is false, but it has 0 answers"),
    ((*PARAGRAPH, "qas", 1, "is_impossible"), MISSING, "question 'q2': answers is empty; give an answer, or add "
     '"is_impossible": true'),
    ((*QUESTION, "answers"), {"text": []}, "data[0].paragraphs[0].qas[0].answers should be a list, not an object"),
    (ANSWER, "Ada", "data[0].paragraphs[0].qas[0].answers[0] should be an object, not a string"),
    ((*ANSWER, "text"), None, "data[0].paragraphs[0].qas[0].answers[0].text should be a string, not null"),
    ((*ANSWER, "text"), "", "question 'q1': the answer '' is not at its answer_start 0"),
    ((*ANSWER, "answer_start"), MISSING, "data[0].paragraphs[0].qas[0].answers[0].answer_start is missing"),
    ((*ANSWER, "answer_start"), "0", "answers[0].answer_start should be a whole number, not a string"),
    ((*ANSWER, "answer_start"), False, "answers[0].answer_start should be a whole number, not true or false"),
    ((*ANSWER, "answer_start"), 0.0, "answers[0].answer_start should be a whole number, not a number"),
    ((*ANSWER, "answer_start"), -23, "question 'q1': the answer 'Ada' is not at its answer_start -23"),
    ((*ANSWER, "answer_start"), 1, "question 'q1': the answer 'Ada' is not at its answer_start 1, where the context "
                                   "has 'da '"),
    ((*ANSWER, "answer_start"), 10**12, "question 'q1': the answer 'Ada' is not at its answer_start 1000000000000"),
    ((*QUESTION, "answers", 1, "answer_start"), 15, "question 'q1': the answer 'London' is not at its answer_start 15"),
])
def test_a_wrong_shape_is_refused_with_its_place(tmp_path, where, value, told):
    path = tmp_path / "squad.json"
    write_squad(path, (ADA, TWO_QUESTIONS))
    document = json.loads(path.read_text(encoding="utf-8"))
    if where:
        parent = document
        for step in where[:-1]:
            parent = parent[step]
        if value is MISSING:
            del parent[where[-1]]
        else:
            parent[where[-1]] = value
    else:
        document = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        open_squad(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert told in str(raised.value)


@pytest.mark.parametrize("paragraphs, flags, told", [
    ([], (), "holds no question"),
    ([(ADA, [])], (), "holds no question"),
    ([(ADA, TWO_QUESTIONS[1:])], ("--answerable_only",), "holds no question with an answer"),
])
def test_a_file_without_questions_is_refused(tmp_path, paragraphs, flags, told):
    path = write_squad(tmp_path / "squad.json", *paragraphs)
    with pytest.raises(InputError) as raised:
        open_squad(path, *flags)
    assert str(raised.value) == f"{path}: {told}"


# ---------------------------------------------------------------------- windows


def windows_of(task, split="validation"):
    """The windows of each question, in order."""
    windows = [[] for _ in task.examples[split]]
    for feature in task.features[split]:
        windows[feature["example_index"]].append(feature)
    return windows


def context_tokens(feature):
    """(id, first character, end character) of the tokens of a window's context."""
    return [(token, *characters) for token, characters in zip(feature["input_ids"], feature["offsets"], strict=True)
            if characters[0] >= 0]


def covered_text(feature, context):
    """The characters of the context that a window's label points at; None: it points at [CLS]."""
    if feature["start"] == feature["end"] == 0:
        return None
    return context[feature["offsets"][feature["start"]][0]:feature["offsets"][feature["end"]][1]]


@pytest.mark.parametrize("length, stride", [(48, 16), (48, 0), (30, 19), (16, 11), (384, 128)])
def test_windows_hold_the_whole_context_and_overlap_by_doc_stride(tmp_path, length, stride):
    generator = random.Random(0)
    paragraphs = []
    for number in range(12):
        context = " ".join(random_words(generator, generator.randint(1, 60)))
        question = " ".join(random_words(generator, generator.randint(1, 30)))
        paragraphs.append((context, [ask(f"q{number}", context, question=question)]))
    path = write_squad(tmp_path / "squad.json", *paragraphs)
    task = load_squad(path, "--max_seq_length", length, "--doc_stride", stride)
    assert len(task.examples["train"]) == len(paragraphs)
    for (context, _), windows in zip(paragraphs, windows_of(task), strict=True):
        alone = task.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        expected = [(token, *characters)
                    for token, characters in zip(alone["input_ids"], alone["offset_mapping"], strict=True)]
        joined = context_tokens(windows[0])
        for before, window in zip(windows, windows[1:], strict=False):
            assert before["length"] == length, "only the last window may be short"
            tokens = context_tokens(window)
            assert tokens[:stride] == context_tokens(before)[len(context_tokens(before)) - stride:]
            assert len(tokens) > stride, "a window must bring something new"
            joined += tokens[stride:]
        assert joined == expected
        assert all(window["length"] == len(window["input_ids"]) <= length for window in windows)


def test_every_window_that_holds_the_whole_answer_points_at_it_and_no_other(tmp_path):
    generator = random.Random(0)
    paragraphs, answers = [], {}
    for number in range(60):
        words = random_words(generator, generator.randint(20, 80))
        context, first = " ".join(words), generator.randrange(20)
        text = " ".join(words[first:first + generator.randint(1, 3)])
        start = len(" ".join([*words[:first], ""]))
        paragraphs.append((context, [ask(f"q{number}", context, text, at=start), ask(f"n{number}", context)]))
        answers[f"q{number}"] = start, start + len(text)
    path = write_squad(tmp_path / "squad.json", *paragraphs)
    # An answer of three words has at most 18 tokens, which such an overlap keeps together in one window or another.
    task = load_squad(path, "--max_seq_length", 48, "--doc_stride", 18)
    both = 0
    for example, windows in zip(task.examples["train"], windows_of(task), strict=True):
        found = [covered_text(window, example["context"]) for window in windows]
        if example["id"] not in answers:
            assert not any(found)
            continue
        begin, end = answers[example["id"]]
        holds = [context_tokens(window)[0][1] <= begin and end <= context_tokens(window)[-1][2] for window in windows]
        assert found == [example["context"][begin:end] if held else None for held in holds]
        assert any(holds)
        both += sum(holds) > 1
        for window in windows:
            assert window["input_ids"][0] == task.tokenizer.cls_token_id
            if window["start"]:
                decoded = task.tokenizer.decode(window["input_ids"][window["start"]:window["end"] + 1])
                assert decoded == example["context"][begin:end]
    assert both > 10, "answers within an overlap must have been among them"


def test_the_first_gold_answer_is_learned_and_its_own_occurrence(tmp_path):
    context = "red fox and red fox"
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context, "red", "fox")]),
                       (context, [ask("q2", context, "red", at=12)]))
    features = [windows[0] for windows in windows_of(load_squad(path))]
    assert [feature["offsets"][feature["start"]][0] for feature in features] == [0, 12]


@pytest.mark.parametrize("context, answer, covered", [
    ("the  red fox  ran", "  red fox  ", "red fox"),
    ("red fox", "ed", "ed"),
    ("it is 12\u00a0000 km", "12\u00a0000", "12\u00a0000"),
    ("\U0001d49c fox \U0001f600 ran", "fox", "fox"),
    ("\U0001d49c fox \U0001f600 ran", "\U0001f600", "\U0001f600"),
    ("caf\u00e9 noir", "caf\u00e9", "caf\u00e9"),
    # The uncased tokenizer drops a combining accent: as an answer's last character it belongs to no token.
    ("cafe\u0301 noir", "cafe\u0301", "cafe"),
    ("cafe\u0301 noir", "noir", "noir"),
    ("noir cafe\u0301", "cafe\u0301", "cafe"),
    ("re\u0301sume\u0301s here", "re\u0301sume\u0301s", "re\u0301sume\u0301s"),
    ("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u05e2\u05d5\u05dc\u05dd", "\u05e2\u05d5\u05dc\u05dd"),
    ("\u0645\u0631\u062d\u0628\u0627 \u0628\u0650\u0643\u064f\u0645", "\u0628\u0650\u0643\u064f\u0645",
     "\u0628\u0650\u0643\u064f\u0645"),
    ("\u200bred\u200b fox\u200b", "\u200bred\u200b", "red"),
    ("\u200bred\u200b fox\u200b", "fox\u200b", "fox"),
    ("a re\u200bd fox", "re\u200bd", "re\u200bd"),
    ("\u4eac\u90fd is old", "\u90fd", "\u90fd"),
    # A Korean syllable is several tokens, all of the same character.
    ("in \ud55c\uad6d now", "\ud55c\uad6d", "\ud55c\uad6d"),
    ("in \ud55c\uad6d now", "\uad6d", "\uad6d"),
    ("\u0130stanbul is big", "\u0130stanbul", "\u0130stanbul"),
    ("\u0130stanbul is big", "big", "big"),
    ("the [SEP] fox", "fox", "fox"),
    ("red \u200b fox", "\u200b", None),  # nothing that a token holds
])
def test_answers_are_placed_by_characters_in_any_script(tmp_path, letters, context, answer, covered):
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context, answer)]))
    [feature] = load_squad(path, model=letters).features["validation"]
    assert covered_text(feature, context) == covered
    assert feature["start"] <= feature["end"]


def test_offsets_stay_right_behind_any_mix_of_characters(tmp_path, letters):
    generator = random.Random(0)
    pieces = ["red", "fox", "12", "cafe\u0301", "caf\u00e9", "\u200b", "\u0301", "\U0001f600", "\U0001d49c", "\u4eac",
              "\u05e9\u05dc\u05d5\u05dd", "\u0628\u0650", "\u00a0", "\u2009", "\u0130", "\ud55c\uad6d", "\u202e", "\0"]
    paragraphs = []
    for number in range(80):
        before, behind = (generator.choices([*pieces, " ", "\n"], k=generator.randint(0, 30)) for _ in range(2))
        context = "".join([*before, " ring ", *behind])
        paragraphs.append((context, [ask(f"q{number}", context, "ring")]))
    task = load_squad(write_squad(tmp_path / "squad.json", *paragraphs), "--max_seq_length", 32, model=letters)
    for (context, _), windows in zip(paragraphs, windows_of(task), strict=True):
        assert {covered_text(window, context) for window in windows} - {None} == {"ring"}
        for window in windows:
            for token, start, end in context_tokens(window):
                plain = unicodedata.normalize("NFD", context[start:end].lower())
                piece = task.tokenizer.convert_ids_to_tokens(token).removeprefix("##")
                assert piece == "[UNK]" or piece in plain


@pytest.mark.parametrize("question", [
    "what is it " * 30, "w" * 90, "\ud55c\uad6d\ub098\ub77c " * 12, "\ud55c\uad6d\ub098\ub77c" * 12, "?" * 200,
    "\uac04\ub2e4" * 12, "\u200b" * 60, "", "   ",
])
@pytest.mark.parametrize("stride", [0, 8, 18, 19])
def test_a_question_that_leaves_no_room_is_cut(tmp_path, letters, question, stride):
    context = "the red fox ran far over the hills and came to a town"
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context, "red", question=question)]))
    task = load_squad(path, "--max_seq_length", 24, "--doc_stride", stride, model=letters)
    [windows] = windows_of(task)
    seen = set()
    for window in windows:
        for _, start, end in context_tokens(window):
            seen.update(range(start, end))
    assert seen == {position for position, character in enumerate(context) if character != " "}
    assert all(window["length"] <= 24 for window in windows)
    assert [covered_text(window, context) for window in windows if window["start"]].count("red") >= (stride >= 2)


def test_a_cut_question_keeps_its_beginning(tmp_path, letters):
    context = "red fox " * 10
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context, question="abcdef ghijkl mnopqr")]))
    feature = load_squad(path, "--max_seq_length", 24, "--doc_stride", 12, model=letters).features["validation"][0]
    # 24 tokens less [CLS], two [SEP], the stride, and one new token of the context: 8 are left.
    assert feature["token_type_ids"] == [0] * 10 + [1] * 14
    assert sum(start >= 0 for start, _ in feature["offsets"]) == 13
    task = load_squad(path, "--max_seq_length", 24, "--doc_stride", 12, model=letters)
    assert task.tokenizer.decode(feature["input_ids"][1:9]) == "abcdef gh"


@pytest.mark.parametrize("flags, told", [
    (("--max_seq_length", 513), "--max_seq_length 513: tiny takes at most 512 tokens"),
    (("--max_seq_length", 24, "--doc_stride", 20),
     "--doc_stride 20: leaves no room in windows of 24 tokens; use at most 19"),
])
def test_windows_that_cannot_be_are_refused(tmp_path, flags, told):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    with pytest.raises(InputError) as raised:
        open_squad(path, *flags)
    assert told in str(raised.value)


def test_more_questions_than_one_batch_keep_their_numbers_and_names(tmp_path):
    # `datasets` maps 1,000 rows at a time; each batch counts its rows from 0.
    paragraphs = [("red fox " * (1 + number % 9), [ask(f"q{number}", "red fox", "fox")]) for number in range(1050)]
    path = write_squad(tmp_path / "squad.json", *paragraphs)
    task = load_squad(path, "--max_seq_length", 16, "--doc_stride", 2)
    features = task.features["validation"]
    names = features["feature_id"][:]
    assert len(set(names)) == len(names) > 1050
    assert features["example_index"][:] == [int(name[1:].split(":")[0]) for name in names]
    assert task.features["train"].to_dict() == features.remove_columns(task.scoring_columns).to_dict()
    for number, windows in enumerate(windows_of(task)):
        assert [window["feature_id"] for window in windows] == [f"q{number}:{n}" for n in range(len(windows))]


# ---------------------------------------------------------------------- score


@pytest.mark.parametrize("text, normal", [
    ("The Cat", "cat"),
    ("a an the", ""),
    ("theory of an-other anthem", "theory of another anthem"),
    ("  red\t\n fox ", "red fox"),
    ("U.S.A.", "usa"),
    ("don't", "dont"),
    ("a.b", "ab"),
    ("A-level", "alevel"),  # punctuation goes before articles, so this one has none
    ("the 1,000 (one thousand)", "1000 one thousand"),
    ("\u201cred\u201d \u2013 fox\u2026", "\u201cred\u201d \u2013 fox\u2026"),  # only ASCII's punctuation goes
    ("\u00c9COLE", "\u00e9cole"),
    ("red\u00a0fox", "red fox"),
    ("!?.", ""),
    ("", ""),
])
def test_normalize_answer(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize("gold, answer, f1", [
    ("the red fox", "Red fox!", 1),
    ("red fox", "red", 2 / 3),
    ("red fox", "red red", 1 / 2),  # each word counts as often as both have it
    ("red red fox", "red red", 4 / 5),
    ("red fox", "blue bird", 0),
    ("fox red", "red fox", 1),
    ("", "", 1),
    ("", "fox", 0),
    ("fox", "", 0),
    ("the", "a", 1),  # both without words
    ("the", "fox", 0),
])
def test_token_f1(gold, answer, f1):
    assert token_f1(gold, answer) == pytest.approx(f1)


def gold(*answers):
    return [{"id": str(number), "answers": {"text": texts}} for number, texts in enumerate(answers)]


@pytest.mark.parametrize("golds, answers, exact, f1", [
    ([["red fox"]], ["The red fox."], 100, 100),
    ([["red fox"]], ["fox"], 0, 200 / 3),
    ([["red fox", "fox"]], ["fox"], 100, 100),  # the best of several
    ([["a red fox ran", "fox ran far"]], ["red fox"], 0, 80),
    ([[]], [""], 100, 100),
    ([[]], ["fox"], 0, 0),
    ([["fox"]], [""], 0, 0),
    ([[]], ["the"], 100, 100),  # an answer that normalises to nothing is none
    ([["The", "fox"]], [""], 0, 0),  # a gold answer without words is left out where there are others
    ([["The", "!"]], [""], 100, 100),  # with none left the question counts as unanswerable
    ([["The"]], ["fox"], 0, 0),
    ([["fox"], [], ["red fox"], []], ["fox", "", "red", "fox"], 50, (100 + 100 + 200 / 3 + 0) / 4),
])
def test_scores_follow_the_official_rules(golds, answers, exact, f1):
    scores = score_answers(gold(*golds), {str(number): answer for number, answer in enumerate(answers)})
    assert scores == {"exact_match": pytest.approx(exact), "f1": pytest.approx(f1)}


CONTEXT = "".join(f"w{n:02d} " for n in range(60))
QUESTION_TOKENS = 3  # [CLS], a word of the question, [SEP]


def window(example, first, count=10):
    """A window of words of CONTEXT, each a token of 3 characters, between special tokens and a padded tail."""
    outside = [[-1, -1]]
    words = [[4 * n, 4 * n + 3] for n in range(first, first + count)]
    return {"example_index": example, "offsets": outside * QUESTION_TOKENS + words + outside}


def logits_of(feature, starts=(), ends=(), null=(0.0, 0.0), padding=4):
    """-5 everywhere but for the given {token of the context: logit}; padding that must not matter has 99."""
    logits = np.full((len(feature["offsets"]) + padding, 2), -5.0, dtype=np.float32)
    for column, values in enumerate((dict(starts), dict(ends))):
        for token, value in values.items():
            logits[QUESTION_TOKENS + token, column] = value
    logits[0] = null
    logits[len(feature["offsets"]):] = 99
    return logits


def answer_of(*cases, null_answers=True):
    features = [feature for feature, _ in cases]
    logits = dict(enumerate(logits for _, logits in cases))
    return predict_answers([{"id": "q", "context": CONTEXT}], features, logits, null_answers)["q"]


def test_the_best_span_of_any_window_is_the_answer():
    weak, strong = window(0, 0), window(0, 6)
    # Both windows hold the words 6 to 9; the second is surer, of other words.
    cases = [(weak, logits_of(weak, {7: 3}, {8: 3})), (strong, logits_of(strong, {1: 4}, {3: 4}))]
    assert answer_of(*cases) == answer_of(*reversed(cases)) == "w07 w08 w09"
    assert answer_of(cases[0]) == "w07 w08"


@pytest.mark.parametrize("nulls, answer", [
    ([9, 9], ""),
    ([9, 1], "w01"),  # the lowest null score of any window counts
    ([1, 9], "w01"),
    ([6, 6], "w01"),  # no better than the span's 3 + 3
    ([6.5, 6.5], ""),
])
def test_no_answer_needs_a_null_score_above_the_span_in_every_window(nulls, answer):
    first, second = window(0, 0), window(0, 30)
    logits = [logits_of(first, {1: 3}, {1: 3}, null=(nulls[0], 0)), logits_of(second, null=(0, nulls[1]))]
    assert answer_of((first, logits[0]), (second, logits[1])) == answer
    assert answer_of((first, logits[0]), (second, logits[1]), null_answers=False) == "w01"


@pytest.mark.parametrize("starts, ends, answer", [
    ({2: 9}, {2: 9}, "w02"),
    ({2: 9}, {31: 9, 5: 1}, " ".join(f"w{n:02d}" for n in range(2, 32))),  # 30 tokens
    ({2: 9}, {32: 9, 5: 1}, "w02 w03 w04 w05"),  # 31 tokens are too many
    ({8: 9, 1: 0}, {4: 9}, "w01 w02 w03 w04"),  # the end never comes before the start
    ({-1: 20, 3: 9}, {-2: 20, 4: 9}, "w03 w04"),  # nor is the question ever the answer
    ({3: 9}, {50: 20, 4: 9}, "w03 w04"),  # nor the last [SEP]
])
def test_only_spans_that_can_be_answers_are(starts, ends, answer):
    feature = window(0, 0, count=50)
    logits = logits_of(feature, starts, ends)
    assert answer_of((feature, logits), null_answers=False) == answer


def test_without_null_answers_there_always_is_an_answer():
    # The 20 best starts and ends all lie in a long question: run_qa's n-best holds no span at all.
    words = window(0, 0, count=3)
    offsets = [[-1, -1]] * 25 + words["offsets"]
    logits = np.zeros((len(offsets), 2), dtype=np.float32)
    logits[:25] = 7
    logits[25 + QUESTION_TOKENS + 1] = 1
    feature = {"example_index": 0, "offsets": offsets}
    assert best_span(logits[:, 0], logits[:, 1], np.array(offsets)) is None
    assert answer_of((feature, logits), null_answers=False) == "w01"
    assert answer_of((feature, logits)) == ""
    # A window that has a span in its n-best goes first, as in run_qa.
    other = window(0, 30)
    assert answer_of((feature, logits), (other, logits_of(other, {1: -4}, {1: -4})), null_answers=False) == "w31"


def test_windows_answer_their_own_question_only():
    features = [window(1, 0), window(0, 0), window(1, 20)]
    logits = {0: logits_of(features[0], {1: 2}, {1: 2}), 1: logits_of(features[1], {5: 1}, {5: 1}),
              2: logits_of(features[2], {1: 3}, {1: 3})}
    examples = [{"id": name, "context": CONTEXT} for name in ("first", "second", "third")]
    answers = predict_answers(examples, features, logits, null_answers=True)
    assert answers == {"first": "w05", "second": "w21", "third": ""}


def slow_best_span(logits, offsets):
    """The rule in so many words: try all pairs of the 20 best starts and ends."""
    best = None
    starts, ends = (sorted(range(len(logits)), key=lambda n: -logits[n, column])[:20] for column in (0, 1))
    for start in starts:
        for end in ends:
            possible = offsets[start][0] >= 0 and offsets[end][0] >= 0 and start <= end < start + 30
            score = logits[start, 0] + logits[end, 1]
            if possible and (best is None or score > best[0]):
                best = score, offsets[start][0], offsets[end][1]
    return best


def test_best_span_is_the_best_of_all_pairs():
    generator = np.random.default_rng(0)
    for count in (1, 5, 15, 40, 57):
        offsets = window(0, 0, count)["offsets"]
        for _ in range(20):
            logits = generator.normal(size=(len(offsets), 2)).astype(np.float32)
            assert best_span(logits[:, 0], logits[:, 1], np.array(offsets)) == slow_best_span(logits, offsets)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One loaded task that the tests below share: contexts of several lengths, some with several windows."""
    generator = random.Random(0)
    paragraphs = []
    for number in range(12):
        words = random_words(generator, 3 + 4 * number)
        context = " ".join(words)
        start = len(words[0]) + 1
        paragraphs.append((context, [ask(f"q{number}", context, words[1], at=start), ask(f"n{number}", context)]))
    path = write_squad(tmp_path_factory.mktemp("story") / "squad.json", *paragraphs)
    return load_squad(path, "--max_seq_length", 48, "--dropout", 0)


def test_logits_at_the_labels_score_100_and_none_scores_the_unanswerable(story):
    features = story.features["validation"]
    right = {}
    for row, feature in enumerate(features):
        right[row] = np.zeros((feature["length"], 2), dtype=np.float32)
        if feature["start"]:
            right[row][feature["start"], 0] = right[row][feature["end"], 1] = 9
        elif feature["feature_id"].startswith("n"):
            right[row][0] = 9
    scores, answers = story.score(right)
    assert scores == {"exact_match": 100, "f1": 100}
    assert answers["n3"] == "" and answers["q3"] == story.examples["validation"][6]["answers"]["text"][0]
    nothing = {row: np.zeros_like(logits) for row, logits in right.items()}
    for logits in nothing.values():
        logits[0] = 9
    assert story.score(nothing)[0] == {"exact_match": 50, "f1": 50}


def test_answerable_only_never_answers_nothing(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    task = load_squad(path, "--answerable_only")
    logits = {0: np.zeros((task.features["validation"][0]["length"], 2), dtype=np.float32)}
    logits[0][0] = 99
    assert task.score(logits)[1]["q1"] != ""


# ---------------------------------------------------------------------- batches, loss


def collate(task, rows, length):
    """As `Batches` does, some rows of the training data."""
    return task.collate(task.samples("train").with_format("arrow")[rows], length)


def test_collate_pads_on_the_right_and_masks_the_padding(story):
    rows = story.features["train"][[0, 23]]
    assert rows["length"][0] < rows["length"][1]
    inputs, labels = collate(story, [0, 23], 56)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (2, 56))
    assert all(tensor.dtype == torch.int64 for tensor in [*inputs.values(), *labels.values()])
    assert set(labels) == set(story.label_names)
    for row, length in enumerate(rows["length"]):
        padding = 56 - length
        assert inputs["input_ids"][row].tolist() == rows["input_ids"][row] + [story.tokenizer.pad_token_id] * padding
        assert inputs["token_type_ids"][row].tolist() == rows["token_type_ids"][row] + [0] * padding
        assert inputs["attention_mask"][row].tolist() == [1] * length + [0] * padding
    assert labels["start"].tolist() == rows["start"] and labels["end"].tolist() == rows["end"]
    assert labels["attention_mask"].tolist() == inputs["attention_mask"].tolist()


@pytest.fixture(scope="module")
def model(story):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for so small a model
    yield story.build_model().eval()
    torch.set_num_threads(threads)


def losses(story, model, rows, length):
    inputs, labels = collate(story, rows, length)
    with torch.no_grad():
        return story.loss(story.logits(model, inputs), labels)


def test_a_loss_does_not_depend_on_what_it_is_batched_with(story, model):
    rows = [0, 6, len(story.features["train"]) - 1]
    lengths = [story.features["train"][row]["length"] for row in rows]
    alone = torch.cat([losses(story, model, [row], length) for row, length in zip(rows, lengths, strict=True)])
    assert len(set(lengths)) > 1
    for length in (48, 200):
        torch.testing.assert_close(losses(story, model, rows, length), alone, rtol=0, atol=2e-6)


def test_without_padding_the_loss_is_the_models_own(story, model):
    for row in (0, 1, 10):
        feature = story.features["train"][row]
        inputs, labels = collate(story, [row], feature["length"])
        with torch.no_grad():
            own = model(**inputs, start_positions=labels["start"], end_positions=labels["end"]).loss
        assert losses(story, model, [row], feature["length"]).item() == pytest.approx(own.item(), abs=1e-6)


def test_loss_has_known_values_and_is_computed_in_fp32(story):
    logits = torch.zeros(2, 6, 2, dtype=torch.bfloat16)
    logits[:, 4:] = 50  # padding of the first sample, tokens of the second
    labels = {"start": torch.tensor([1, 4]), "end": torch.tensor([2, 0]),
              "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])}
    loss = story.loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([math.log(4), (math.log(2) + 50 + math.log(2)) / 2])


def test_the_same_seed_gives_the_same_model(story, model):
    again = story.build_model()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


# ---------------------------------------------------------------------- cache, limits

SECOND_START = """
import json, sys
from workload.arguments import Arguments, parse_arguments
from workload.tasks.squad_v2 import SquadV2
task = SquadV2(parse_arguments(Arguments, sys.argv[1:]))
task.load()
print(json.dumps({split: [f._fingerprint, [file["filename"] for file in f.cache_files]]
                  for split, f in task.features.items()}))
"""


def cached(task):
    return {split: [features._fingerprint, [file["filename"] for file in features.cache_files]]
            for split, features in task.features.items()}


def test_a_second_start_takes_features_from_the_cache(tmp_path, cache):
    train = write_squad(tmp_path / "train.json", (ADA, TWO_QUESTIONS))
    evaluation = write_squad(tmp_path / "eval.json", (ADA, TWO_QUESTIONS[:1]))
    first = load_squad(train, evaluation=evaluation)
    files = [file for _, names in cached(first).values() for file in names]
    before = {file: (os.stat(file).st_mtime_ns, os.stat(file).st_ino) for file in files}
    assert len(files) == 2
    assert cached(load_squad(train, evaluation=evaluation)) == cached(first)
    # A new process is what a user's second start is.
    command = [sys.executable, "-c", SECOND_START, "--train_file", train, "--eval_file", evaluation, "--model", "tiny"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == cached(first)
    assert {file: (os.stat(file).st_mtime_ns, os.stat(file).st_ino) for file in files} == before


def test_a_changed_file_of_the_same_name_is_read_anew(tmp_path, letters):
    path = tmp_path / "squad.json"
    write_squad(path, (ADA, [ask("q1", ADA, "Ada")]))
    first, stamp = load_squad(path, model=letters), path.stat()
    write_squad(path, (ADA, [ask("q1", ADA, "wro")]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size, "neither size nor time tell the two apart"
    second = load_squad(path, model=letters)
    assert [covered_text(task.features["validation"][0], ADA) for task in (first, second)] == ["Ada", "wro"]
    assert second.examples["validation"][0]["answers"]["text"] == ["wro"]


@pytest.mark.parametrize("flags, model", [
    (("--max_seq_length", 24), "tiny"), (("--doc_stride", 100), "tiny"), ((), "letters"),
])
def test_what_features_depend_on_is_part_of_the_caches_key(tmp_path, letters, flags, model):
    context = " ".join(random_words(random.Random(0), 300))
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context)]))
    plain = load_squad(path)
    other = load_squad(path, *flags, model=letters if model == "letters" else model)
    for split in ("train", "validation"):
        assert other.features[split]["input_ids"][:] != plain.features[split]["input_ids"][:]


def test_only_the_questions_that_a_limit_keeps_are_trained_and_scored(tmp_path):
    questions = [ask(f"q{number}", ADA, "Ada") for number in range(7)]
    path = write_squad(tmp_path / "squad.json", (ADA, questions))
    task = load_squad(path, "--max_train_examples", 3, "--max_eval_examples", 2)
    kept = task.examples["train"]["id"][:]
    assert len(kept) == 3 and kept == sorted(kept)
    assert task.features["train"]["feature_id"][:] == [f"{question}:0" for question in kept]
    one, other = task.examples["validation"]["id"][:]
    logits = {row: np.zeros((feature["length"], 2), dtype=np.float32)
              for row, feature in enumerate(task.features["validation"])}
    logits[0][task.features["validation"][0]["start"], 0] = logits[0][task.features["validation"][0]["end"], 1] = 9
    logits[1][0] = 9
    scores, answers = task.score(logits)
    assert answers == {one: "Ada", other: ""}
    assert scores == {"exact_match": 50, "f1": 50}


def test_a_limit_above_the_number_of_questions_keeps_all(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    task = load_squad(path, "--max_train_examples", 99, "--max_eval_examples", 1, "--answerable_only")
    assert [len(task.examples[split]) for split in ("train", "validation")] == [1, 1]


def test_the_hubs_data_set_gives_what_the_files_give(tmp_path, monkeypatch):
    """From a folder laid out as the Hub's: the code that loads it is the one that would load it from there."""
    flags = ["--model", "tiny", "--max_seq_length", "128", "--max_train_examples", "40", "--max_eval_examples", "40"]
    from_files = SquadV2(parse_arguments(Arguments, ["--sample", *flags]))
    from_files.load()
    for split, rows in from_files.examples.items():
        rows = rows.add_column("title", ["A title"] * len(rows))
        rows.to_parquet(tmp_path / "rajpurkar" / "squad_v2" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr("workload.tasks.squad_v2.HUB_DATASET", str(tmp_path / "rajpurkar" / "squad_v2"))
    for more in ([], ["--answerable_only"]):
        from_hub = SquadV2(parse_arguments(Arguments, [*flags, *more]))
        from_hub.load()
        for split, rows in from_hub.features.items():
            expected = [row for row in from_files.features[split] if not more or row["end"] > 0]
            assert [{**row, "example_index": 0} for row in rows] == [{**row, "example_index": 0} for row in expected]


def test_tokenising_in_several_processes_gives_the_same_in_the_same_order(tmp_path, monkeypatch):
    questions = [ask(f"q{number}", ADA, "Ada", question="Who? " * (1 + number % 7)) for number in range(50)]
    path = write_squad(tmp_path / "squad.json", (ADA, questions))
    one = load_squad(path)
    assert all(features.cache_files for features in one.features.values()), "held in memory, not mapped"
    monkeypatch.setattr("workload.tasks.task.EXAMPLES_A_PROCESS", 20)
    monkeypatch.setattr("workload.tasks.task.usable_cores", lambda: 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another")
    several = load_squad(path)
    assert len(several.features["train"].cache_files) == 2
    for split, features in one.features.items():
        assert several.features[split].to_dict() == features.to_dict()

"""Windows: they hold the whole context, overlap by --doc_stride, and cut a question that leaves no room."""

import random

import pytest

from tests.shared.squad import (
    ADA,
    TWO_QUESTIONS,
    ask,
    context_tokens,
    covered_text,
    load_squad,
    open_squad,
    random_words,
    windows_of,
    write_squad,
)
from workload.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


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

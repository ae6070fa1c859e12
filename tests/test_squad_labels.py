"""Labels: which tokens of a window are the answer, in any script."""

import random
import unicodedata

import pytest

from tests.shared.squad import ask, context_tokens, covered_text, load_squad, random_words, windows_of, write_squad

pytestmark = pytest.mark.usefixtures("cache")


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

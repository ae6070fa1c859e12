"""From logits to a question's answer: the best span of any of its windows, or none."""

import numpy as np
import pytest

from tests.shared.squad import ADA, TWO_QUESTIONS, load_squad, write_squad
from workload.tasks.squad_score import best_span, predict_answers

pytestmark = pytest.mark.usefixtures("cache")
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
    """The rule, written out: try all pairs of the 20 best starts and ends."""
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

"""From logits to answers, and from answers to exact match and F1, by the official rules of SQuAD v2.0."""

import collections
import re
import string

import numpy as np

BEST_POSITIONS = 20  # best starts and ends of a window that are tried, as in run_qa
LONGEST_ANSWER = 30  # tokens, as in run_qa


def best_span(start_logits: np.ndarray, end_logits: np.ndarray, offsets: np.ndarray,
              positions: int = BEST_POSITIONS) -> tuple[float, int, int] | None:
    """The best answer within one window: (score, first character, end character), or None if there is none.

    Args:
        start_logits, end_logits: (length,)
        offsets: characters of each token in the context; -1 for tokens outside of it. (length, 2)
        positions: number of the best starts, and of the best ends, that are tried.
    """
    starts = np.argsort(start_logits)[::-1][:positions]
    ends = np.argsort(end_logits)[::-1][:positions]
    in_context = offsets[:, 0] >= 0
    tokens = ends[None, :] - starts[:, None] + 1  # (starts, ends)
    allowed = in_context[starts][:, None] & in_context[ends][None, :] & (tokens >= 1) & (tokens <= LONGEST_ANSWER)
    if not allowed.any():
        return None
    scores = np.where(allowed, start_logits[starts][:, None] + end_logits[ends][None, :], -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[first, last]), int(offsets[starts[first], 0]), int(offsets[ends[last], 1])


def predict_answers(examples, features, logits: dict[int, np.ndarray], null_answers: bool) -> dict[str, str]:
    """One answer per question from all its windows; "" if [CLS] scores higher than every answer.

    As in run_qa, the best span of any window competes with the lowest null score of any window.

    Args:
        examples: rows with id and context.
        features: the windows: rows with example_index and offsets (length, 2).
        logits: row number of a feature -> (length, 2)
        null_answers: whether "" is a possible answer.
    """
    best: dict[int, tuple[float, int, int]] = {}
    null_score: dict[int, float] = {}
    for row, feature in enumerate(features):
        start_logits, end_logits = logits[row][:, 0], logits[row][:, 1]
        example = feature["example_index"]
        null_score[example] = min(null_score.get(example, np.inf), float(start_logits[0] + end_logits[0]))
        offsets = np.asarray(feature["offsets"])
        start_logits, end_logits = start_logits[: len(offsets)], end_logits[: len(offsets)]
        span = best_span(start_logits, end_logits, offsets)
        if span is None and not null_answers:  # run_qa would answer "empty"; here every span is tried
            span = best_span(start_logits, end_logits, offsets, positions=len(offsets))
            span = span and (-np.inf, *span[1:])
        if span and (example not in best or span[0] > best[example][0]):
            best[example] = span
    answers = {}
    for index, example in enumerate(examples):
        span = best.get(index)
        if span is None or null_answers and null_score[index] > span[0]:
            answers[example["id"]] = ""
        else:
            answers[example["id"]] = example["context"][span[1]:span[2]]
    return answers


def score_answers(examples, answers: dict[str, str]) -> dict[str, float]:
    """Exact match and F1 in percent: for each question its best over the gold answers, averaged over questions."""
    exact = f1 = 0.0
    for example in examples:
        gold = [text for text in example["answers"]["text"] if normalize_answer(text)] or [""]
        answer = answers[example["id"]]
        exact += max(float(normalize_answer(text) == normalize_answer(answer)) for text in gold)
        f1 += max(token_f1(text, answer) for text in gold)
    return {"exact_match": 100 * exact / len(examples), "f1": 100 * f1 / len(examples)}


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and repeated spaces, as in SQuAD v2.0's evaluation script."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(gold: str, answer: str) -> float:
    """Harmonic mean of the precision and recall of words. If a text has no words: 1 if both have none, else 0."""
    gold_words, answer_words = normalize_answer(gold).split(), normalize_answer(answer).split()
    if not gold_words or not answer_words:
        return float(gold_words == answer_words)
    common = sum((collections.Counter(gold_words) & collections.Counter(answer_words)).values())
    return 2 * common / (len(gold_words) + len(answer_words))

"""Exact match and F1 by SQuAD v2.0's official rules."""

import pytest

from workload.tasks.squad_score import normalize_answer, score_answers, token_f1


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

"""SQuAD files: what is read as it is written, and what is refused with its place."""

import json

import pytest

from tests.shared.squad import ADA, TWO_QUESTIONS, ask, open_squad, write_squad
from workload.errors import InputError
from workload.tasks.files import file_digest
from workload.tasks.squad_files import read_squad

pytestmark = pytest.mark.usefixtures("cache")
MISSING = object()


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

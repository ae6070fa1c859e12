"""Reads SQuAD's official files (v2.0, and v1.1 with the same layout) and checks that every answer is in its place."""

from collections.abc import Iterator
from typing import Any, TypeVar

from workload.errors import InputError
from workload.tasks.files import HALF_CHARACTER, open_text, parse_json, shown

T = TypeVar("T")


def read_squad(path: str, answerable_only: bool, digest: str = "") -> Iterator[dict]:
    """The questions of an official SQuAD JSON file, one at a time.

    Yields:
        id, question, context (str); answers: {"text": [str], "answer_start": [int]}, empty if unanswerable.

    Args:
        digest: of the file; part of the cache key of `datasets`.

    Raises:
        InputError: not JSON, another layout, or an answer that is not at its `answer_start`.
    """
    with open_text(path) as file:
        document = parse_json(file.read(), path)

    def member(parent: Any, name: str, kind: type[T], place: str) -> T:
        if not isinstance(parent, dict):
            raise InputError(f"{path}: {place or 'the top level'} should be an object, not {_json_name(parent)}")
        where = f"{place}.{name}" if place else name
        if name not in parent:
            raise InputError(f"{path}: {where} is missing; a SQuAD file has it")
        value = parent[name]
        if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
            raise InputError(f"{path}: {where} should be {_JSON_NAMES[kind]}, not {_json_name(value)}")
        if isinstance(value, str) and HALF_CHARACTER.search(value):
            raise InputError(f"{path}: {where} holds half of a surrogate pair, which is not text")
        return value

    seen: set[str] = set()
    for a, article in enumerate(member(document, "data", list, "")):
        for p, paragraph in enumerate(member(article, "paragraphs", list, f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            context = member(paragraph, "context", str, place)
            for q, question in enumerate(member(paragraph, "qas", list, place)):
                place = f"data[{a}].paragraphs[{p}].qas[{q}]"
                question_id = member(question, "id", str, place)
                text = member(question, "question", str, place)
                impossible = member(question, "is_impossible", bool, place) if "is_impossible" in question else False
                answers = member(question, "answers", list, place)
                if question_id in seen:
                    raise InputError(f"{path}: {place}.id {shown(question_id)} occurs twice; give every question a "
                                     "unique id")
                seen.add(question_id)
                if not answers and "is_impossible" not in question:
                    raise InputError(f"{path}: question {shown(question_id)}: answers is empty; give an answer, or add "
                                     '"is_impossible": true if the context does not hold it')
                if impossible == bool(answers):
                    raise InputError(f"{path}: question {shown(question_id)}: is_impossible is "
                                     f"{str(impossible).lower()}, but it has {len(answers)} answers; correct one of "
                                     "the two")
                texts, starts = [], []
                for n, answer in enumerate(answers):
                    wanted = member(answer, "text", str, f"{place}.answers[{n}]")
                    start = member(answer, "answer_start", int, f"{place}.answers[{n}]")
                    found = context[start:start + len(wanted)] if start >= 0 else ""
                    if found != wanted or not wanted.strip():
                        raise InputError(f"{path}: question {shown(question_id)}: the answer {shown(wanted)} is not at "
                                         f"its answer_start {start}, where the context has {shown(found)}")
                    texts.append(wanted)
                    starts.append(start)
                if impossible and answerable_only:
                    continue
                # As in run_qa: leading spaces of a question would only take room from its context.
                yield {"id": question_id, "question": text.lstrip(), "context": context,
                       "answers": {"text": texts, "answer_start": starts}}


_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", bool: "true or false",
               float: "a number", type(None): "null"}


def _json_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)

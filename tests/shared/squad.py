"""SQuAD files made for a test, the task that reads them, and what its windows hold."""

import json
import string

from workload.arguments import Arguments, parse_arguments
from workload.tasks.squad_v2 import SquadV2


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


ADA = "Ada wrote it in London."
TWO_QUESTIONS = [ask("q1", ADA, "Ada", "London"), ask("q2", ADA, question="  Who read it?")]


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

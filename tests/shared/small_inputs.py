"""A small file of each task's format, with characters of many kinds, and the tasks that read them."""

import json
import re
from pathlib import Path

import pyarrow as pa

from workload.arguments import Arguments, parse_arguments
from workload.tasks.files import check_path
from workload.tasks.registry import Task, open_task

CONTEXT = ("In 1871 Zo\u00eb \U0001f600 M\u00fcller wrote \u05e9\u05dc\u05d5\u05dd to re\u0301sume\u0301\u200b the "
           "\ud55c\uad6d line in \U0001d49capoli.\nAll\u00a0read it.")
ANSWERS = ["1871", "Zo\u00eb", "\U0001f600", "\u05e9\u05dc\u05d5\u05dd", "re\u0301sume\u0301\u200b", "\ud55c\uad6d",
           "read it"]
SQUAD = {"version": "v2.0", "data": [
    {"title": "A", "paragraphs": [{"context": CONTEXT, "qas": [
        {"id": str(number), "question": " Who wrote?", "is_impossible": False,
         "answers": [{"text": text, "answer_start": CONTEXT.index(text)}]} for number, text in enumerate(ANSWERS)]}]},
    {"title": "B", "paragraphs": [{"context": "Nobody came.", "qas": [
        {"id": "none", "question": "Who came?", "is_impossible": True, "answers": []}]}]}]}
REVIEWS = ('text,label\n"Good, ""really"".\nYes.",1\nBad: \u00f1 \U0001f600.,0\n"So, so.",neg\n'
           'Fine.,pos\n').encode()
PAIRS = ("index\tpairID\tgenre\tsentence1\tsentence2\tgold_label\n"
         "0\t7n\ttravel\t\"He said.\tShe \U0001f600 did.\tneutral\n1\t8e\ttravel\tA.\tB.\t-\n"
         "2\t9c\tslate\tC, d.\t\u05e9\u05dc\u05d5\u05dd\tcontradiction\n3\t10c\tslate\tE.\tF.\tentailment\n").encode()
LINES = b"".join(json.dumps({"content": text, "metadata": {"n": [1]}}, ensure_ascii=False).encode() + b"\n"
                 for text in ("One.\nTwo. " * 3, "\U0001f600 \u05e9\u05dc\u05d5\u05dd", "Three."))
TEXT = ("One line.\nAnother one: \u00f1.\n\n  \n\u05e9\u05dc\u05d5\u05dd \U0001f600 re\u0301sume\u0301,\ttabs\n\n"
        "The end.").encode()
FILES = {"squad_v2": ("x.json", json.dumps(SQUAD).encode()), "imdb": ("x.csv", REVIEWS), "mnli": ("x.tsv", PAIRS),
         "oscar": ("x.jsonl", LINES)}


def open_small(name: str, folder, *flags: str) -> Task:
    """A task, opened with its small file and the tiny model."""
    file, content = FILES[name]
    (folder / file).write_bytes(content)
    files = [word for part in ("--train_file", "--eval_file") for word in (part, str(folder / file))]
    return open_task(parse_arguments(Arguments, ["--task", name, "--model", "tiny", *files, *flags]))


def load(task: Task, path: str, **options) -> dict[str, list]:
    """The examples of a file, read as a task does at its start, in the form in which `datasets` keeps them."""
    check_path(path)
    assert re.fullmatch("[0-9a-f]{64}", task.digest(path))
    return pa.Table.from_pylist(list(task.read(path, **options)), schema=task.columns.arrow_schema).to_pydict()


def tokenise(task: Task, examples: dict[str, list]) -> dict[str, list]:
    """The samples made of examples; {} if there are none."""
    count = len(next(iter(examples.values())))
    return task._tokenise(examples, list(range(count))) if count else {}


def text_of(content: bytes) -> str:
    """The text of a file without its byte order mark."""
    return content.decode("utf-8-sig")


def lines_of(content: bytes) -> list[str]:
    """The lines that are not blank, whatever ends them."""
    return [line for line in re.split("\r\n|\r|\n", text_of(content)) if line.strip()]


def open_flags(*flags) -> Task:
    """The task of a training script's flags."""
    return open_task(parse_arguments(Arguments, [str(flag) for flag in flags]))


def write(path: Path, text: str) -> str:
    """Write a text file, with its folder; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)

"""Questions, reviews and pairs mutated at random: loaded rightly, or refused in a line that names file and place."""

import csv
import io
import json
import os
import re
import shutil

import pytest

from tests.shared.answer_spans import check_windows
from tests.shared.mutations import count_outcomes, mutate_bytes, mutate_json, mutate_table, mutate_text, refusal
from tests.shared.small_inputs import PAIRS, REVIEWS, SQUAD, lines_of, load, open_small, text_of, tokenise
from workload.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


# ---------------------------------------------------------------------- SQuAD

def check_questions(examples, content):
    """Every question of the file is there, as it stands there, with its answers at their places."""
    questions = [(paragraph["context"], question) for article in json.loads(text_of(content))["data"]
                 for paragraph in article["paragraphs"] for question in paragraph["qas"]]
    assert examples["id"] == [question["id"] for _, question in questions]
    assert len(set(examples["id"])) == len(questions)
    assert examples["context"] == [context for context, _ in questions]
    assert examples["question"] == [question["question"].lstrip() for _, question in questions]
    for (context, question), answers in zip(questions, examples["answers"], strict=True):
        assert bool(answers["text"]) != question.get("is_impossible", False)
        assert answers["text"] == [answer["text"] for answer in question["answers"]]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert context[start:start + len(text)] == text


def test_questions_have_right_answers_or_are_refused(folder):
    task = open_small("squad_v2", folder, "--max_seq_length", "32", "--doc_stride", "12")
    path, pointing = folder / "mutated.json", []

    def check(chance):
        content = json.dumps(SQUAD, ensure_ascii=chance.random() < 0.5).encode()
        content = mutate_json(chance, SQUAD) if chance.random() < 0.7 else mutate_bytes(chance, content)
        path.write_bytes(content)
        try:
            examples = load(task, str(path), answerable_only=False)
        except InputError as error:
            refusal(error, str(path), ": data", "the top level", "question '", "(line ", "in line ")
            return "refused"
        check_questions(examples, content)
        features = tokenise(task, examples)
        pointing.append(check_windows(task, examples, features) if features else 0)
        return "loaded"

    outcomes = count_outcomes(700, check)
    assert min(outcomes["loaded"], outcomes["refused"]) > 100 and sum(pointing) > 500, outcomes


# ---------------------------------------------------------------------- classes

def check_classes(task, examples, expected):
    """The examples are (text, pair, label), and their samples have these labels."""
    assert list(zip(examples["text"], examples["pair"], examples["label"], strict=True)) == expected
    if expected:
        samples = tokenise(task, examples)
        assert samples["label"] == [label for *_, label in expected]
        assert set(samples["label"]) <= set(range(len(task.classes))) and max(samples["length"]) <= task.max_length


LABELS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}


def check_reviews(task, examples, content):
    head, *rows = (row for row in csv.reader(io.StringIO(text_of(content), newline=""))
                   if "".join(row).strip())
    assert head.count("text") == head.count("label") == 1
    rows = [dict(zip(head, row, strict=True)) for row in rows]
    check_classes(task, examples, [(row["text"], None, LABELS[row["label"].strip().lower()]) for row in rows])


def check_pairs(task, examples, content):
    head, *rows = (line.split("\t") for line in lines_of(content))
    rows = [dict(zip(head, row, strict=True)) for row in rows]
    rows = [row for row in rows if row["gold_label"] != "-"]
    assert examples["id"] == [row["pairID"] for row in rows]
    assert len(set(examples["id"])) == len(rows) and all(map(str.strip, examples["id"]))
    check_classes(task, examples, [(row["sentence1"], row["sentence2"], task.classes.index(row["gold_label"]))
                                   for row in rows])


@pytest.mark.parametrize("name, valid, separator, check_rows", [
    ("imdb", REVIEWS, b",", check_reviews), ("mnli", PAIRS, b"\t", check_pairs)], ids=["imdb", "mnli"])
def test_tables_are_loaded_as_they_are_or_refused(folder, name, valid, separator, check_rows):
    task, path = open_small(name, folder, "--max_seq_length", "16"), folder / f"mutated_{name}"

    def check(chance):
        content = mutate_table(chance, valid, separator) if chance.random() < 0.5 else mutate_bytes(chance, valid)
        path.write_bytes(content)
        try:
            examples = load(task, str(path))
        except InputError as error:
            refusal(error, str(path), ": line ", "(line ")
            return "refused"
        check_rows(task, examples, content)
        return "loaded"

    outcomes = count_outcomes(350, check)
    assert min(outcomes["loaded"], outcomes["refused"]) > 40, outcomes


# ---------------------------------------------------------------------- folders

NAMES = ["\u00f1\U0001f600.txt", "\udcff.txt", "a b.txt", "x.TXT", ".txt", "[1]*.txt"]


def spoil(chance, folder):
    """Change a review of a folder, or put something odd beside it."""
    files = [file for file in sorted(folder.glob("*/*_7.txt")) if file.is_file()]
    if not files:
        return
    file = chance.choice(files)
    new = file.parent / f"{len(os.listdir(file.parent))}_8.txt"
    match chance.choice(["bytes", "empty", "folder", "link", "loop", "dangling", "pipe", "name", "other", "gone"]):
        case "bytes":
            file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        case "empty":
            file.write_bytes(chance.choice([b"", b" \n", b"\xef\xbb\xbf", b"\xe2\x80\xa8"]))
        case "folder":
            new.mkdir()
        case "link":
            new.symlink_to(file)
        case "loop":
            new.symlink_to(new)
        case "dangling":
            new.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(new)
        case "name":
            (file.parent / chance.choice(NAMES)).write_text("Good.", encoding="utf-8")
        case "other":
            new.with_suffix("").mkdir()
            (new.with_suffix("") / "3_3.txt").write_bytes(b"\xff")
        case "gone":
            shutil.rmtree(file.parent)
            if chance.random() < 0.5:
                file.parent.write_bytes(b"")


def test_folders_of_reviews_are_loaded_as_they_are_or_refused(folder):
    task, root = open_small("imdb", folder, "--max_seq_length", "16"), folder / "reviews"

    def check(chance):
        shutil.rmtree(root, ignore_errors=True)
        for kind in ("pos", "neg"):
            (root / kind).mkdir(parents=True)
            for number in range(2):
                text = f"A {kind} film, {mutate_text(chance, 'so')}."
                (root / kind / f"{number}_7.txt").write_bytes(text.encode(errors="replace"))
        for _ in range(chance.randint(1, 2)):
            spoil(chance, root)
        try:
            examples = load(task, str(root))
        except InputError as error:
            refusal(error, str(root), "/neg/", "/pos/", "has no neg/", "has no pos/", ": neg has", ": pos has")
            return "refused"
        files = [root / kind / name for kind in ("neg", "pos") for name in sorted(os.listdir(root / kind))
                 if name.lower().endswith(".txt") and not name.startswith(".")]
        texts = [re.sub("\r\n?", "\n", text_of(file.read_bytes())) for file in files]
        assert examples["id"] == [f"{file.parent.name}/{file.name.removesuffix('.txt')}" for file in files]
        check_classes(task, examples, [(text, None, int(file.parent.name == "pos"))
                                       for text, file in zip(texts, files, strict=True)])
        return "loaded"

    outcomes = count_outcomes(200, check)
    assert min(outcomes["loaded"], outcomes["refused"]) > 20, outcomes


def test_what_cannot_be_read_again_and_again_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match="neither a file nor a folder"):
            open_small("squad_v2", tmp_path, "--eval_file", str(path))

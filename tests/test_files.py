"""Files of reviews, pairs of sentences and documents: what is read, and what is refused with its place."""

import csv
import gzip

import numpy as np
import pytest
import zstandard

from tests.shared.runs import ROOT
from tests.shared.small_inputs import open_flags, write
from workload.errors import InputError
from workload.tasks.imdb import Imdb, read_reviews
from workload.tasks.mnli import read_pairs
from workload.tasks.oscar import read_documents

TASKS = ("imdb", "mnli", "oscar")
pytestmark = pytest.mark.usefixtures("cache")


def test_imdb_reads_the_official_folder(tmp_path):
    write(tmp_path / "train" / "pos" / "0_9.txt", "Good.<br />Really, \"good\".")
    write(tmp_path / "train" / "neg" / "1_2.txt", "Bad: ñ.\n")
    write(tmp_path / "train" / "unsup" / "2_0.txt", "Whatever.")
    assert list(read_reviews(str(tmp_path / "train"))) == [
        {"id": "neg/1_2", "text": "Bad: ñ.\n", "pair": None, "label": 0},
        {"id": "pos/0_9", "text": "Good.<br />Really, \"good\".", "pair": None, "label": 1}]


@pytest.mark.parametrize("content", [
    'text,label\n"Good, ""really"".\nYes.",1\nBad.,0\n', '\ufefflabel,text\n1,"Good, ""really"".\nYes."\n0,Bad.\n',
    'review,sentiment\n"Good, ""really"".\nYes.",positive\nBad.,Negative\n'])
def test_imdb_reads_csv(tmp_path, content):
    rows = list(read_reviews(write(tmp_path / "reviews.csv", content)))
    assert [(row["text"], row["label"]) for row in rows] == [('Good, "really".\nYes.', 1), ("Bad.", 0)]


GLUE = "index\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"


def test_mnli_reads_glues_files_without_quoting(tmp_path):
    path = write(tmp_path / "dev.tsv", GLUE + '0\t7n\ttravel\t"He said.\tShe did."\tx\tneutral\n'
                 "1\t8e\ttravel\tA.\tB.\tx\t-\n2\t9c\ttravel\tC, d.\tE.\tx\tcontradiction\n")
    assert list(read_pairs(path)) == [{"id": "7n", "text": '"He said.', "pair": 'She did."', "label": 1},
                                      {"id": "9c", "text": "C, d.", "pair": "E.", "label": 2}]


def test_oscar_reads_json_lines_and_plain_text_packed_or_not(tmp_path):
    lines = '{"content": "One.\\nTwo.", "metadata": {}}\n{"text": "Three."}\n'
    texts = ["One.\nTwo.", "Three."]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write(tmp_path / "a.jsonl", lines)
    write(tmp_path / "a.txt", "\n\nOne.\nTwo.\n \n\nThree.")
    for name in ("a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.txt"):
        assert [document["text"] for document in read_documents(str(tmp_path / name))] == texts, name


@pytest.mark.parametrize("task, content, told", [
    ("imdb", "text,stars\nGood.,9\n", "line 1 has no column label or sentiment, as CSV files of reviews"),
    ("imdb", "text;label\nGood.;1\n", "have; it is 'text;label'"),
    ("imdb", "text,label\nGood.,9\n", "line 2: the label is '9'; use 0 or 1, or neg or pos"),
    ("imdb", "text,label\nGood.,1\n,\n  ,0\n", "line 4: the review is empty"),
    ("imdb", "text,label\nGood., really,1\n", "line 2: has 3 columns, not 2 as the first line"),
    ("imdb", 'text,label\n"Good.,1\n', "not CSV"),
    ("imdb", "", "line 1 has no column text"),
    ("mnli", "a\tb\n", "line 1 has no column pairID, sentence1 or premise, sentence2 or "
     "hypothesis, gold_label or label, as GLUE's MNLI files have; it is 'a\\tb'"),
    ("mnli", GLUE + "0\t7n\ttravel\tA.\tB.\tx\tmaybe\n", "line 2: the label is 'maybe'; use entailment or neutral"),
    ("mnli", GLUE + "0\t7n\ttravel\t\tB.\tx\tneutral\n", "line 2: the first sentence is empty"),
    ("mnli", GLUE + "0\t7n\ttravel\tneutral\n", "line 2: has 4 columns, not 7"),
    ("mnli", GLUE, "holds no pair of sentences"),
    ("oscar", '{"content": "A."}\n{"content": 3}\n', "line 2: no object with a text as 'content' or 'text'"),
    ("oscar", '{"content": "A."}\n[\n', "not JSON (line 2, column 2"),
    ("oscar", "", "holds no document"),
    ("imdb", "text,text,label\nGood.,Bad.,1\n", "line 1 has the column text more than once"),
    ("mnli", GLUE.replace("genre", "sentence1"), "line 1 has the column sentence1 more than once"),
    ("oscar", '{"content": "A."}\n{"content": "\\ud83d"}\n', "line 2: holds half of a surrogate pair"),
    pytest.param("oscar", '{"content": "A.", "n": ' + "1" * 5000 + "}\n", "too many digits (what begins in line 1)",
                 id="long number"),
    pytest.param("oscar", '{"content": "A."}\n' + "[" * 100_000, "nested too deeply (what begins in line 2)",
                 id="deep"),
])
def test_a_broken_file_is_refused_with_its_place(tmp_path, task, content, told):
    path = write(tmp_path / {"imdb": "x.csv", "mnli": "x.tsv", "oscar": "x.jsonl"}[task], content)
    with pytest.raises(InputError) as error:
        open_flags("--task", task, "--model", "tiny", "--train_file", path, "--eval_file", path)
    assert str(error.value).startswith(path) and told in str(error.value)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("content, told", [(b"text,label\n\xff,1\n", "not UTF-8 text"), (None, "no such file"),
                                           (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer")])
def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path, task, content, told):
    path = tmp_path / "x.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        open_flags("--task", task, "--model", "tiny", "--train_file", path, "--eval_file", path)


def test_hidden_files_are_no_reviews(tmp_path):
    """Those that macOS, notebooks and editors leave beside a folder's files, or in place of them."""
    for name in ("neg/0_1.txt", "pos/0_9.txt"):
        write(tmp_path / name, "A review.")
    before = Imdb.digest(str(tmp_path))
    for name in ("neg/._0_1.txt", "neg/.0_1.txt", "pos/.ipynb_checkpoints/0_9-checkpoint.txt", "pos/.DS_Store",
                 "pos/Thumbs.db", "pos/0_9.txt~", "pos/.0_9.txt.swp", "pos/#0_9.txt#", ".DS_Store", "labeledBow.feat",
                 "unsup/0_0.txt", "__MACOSX/neg/._0_1.txt"):
        write(tmp_path / name, "\0\5 Mac OS X")
    assert [review["id"] for review in read_reviews(str(tmp_path))] == ["neg/0_1", "pos/0_9"]
    assert Imdb.digest(str(tmp_path)) == before, "the workload's hash would change with it"
    write(tmp_path / "pos/1_9.txt", "Another.")
    assert Imdb.digest(str(tmp_path)) != before
    for name in ("pos/0_9.txt", "pos/1_9.txt"):
        (tmp_path / name).rename((tmp_path / name).with_name("._0_9.txt"))
    with pytest.raises(InputError, match=r"has no pos/\*.txt; use a folder that has neg/"):
        list(read_reviews(str(tmp_path)))


def test_a_folders_names_may_be_in_upper_case(tmp_path):
    for name in ("neg/0_1.txt", "neg/0_1.TXT", "Neg/0_1.txt", "POS/0_9.txt"):
        write(tmp_path / name, "A review.")
    assert [(review["id"], review["label"]) for review in read_reviews(str(tmp_path))] == [
        ("Neg/0_1", 0), ("neg/0_1.TXT", 0), ("neg/0_1", 0), ("POS/0_9", 1)]


@pytest.mark.parametrize("task", ["squad_v2", "mnli", "oscar"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, task):
    with pytest.raises(InputError, match="cannot be read"):
        open_flags("--task", task, "--model", "tiny", "--train_file", tmp_path, "--eval_file", tmp_path)


def test_what_other_code_made_of_a_file_is_not_taken_from_the_cache(tmp_path, monkeypatch):
    path = write(tmp_path / "x.csv", "text,label\nGood.,1\nBad.,0\n")
    flags = ("--task", "imdb", "--model", "tiny", "--train_file", path, "--eval_file", path)
    assert open_flags(*flags).examples["train"]["id"][:] == ["0", "1"]
    monkeypatch.setattr("workload.tasks.imdb.enumerate", lambda rows: enumerate(rows, start=5), raising=False)
    assert open_flags(*flags).examples["train"]["id"][:] == ["0", "1"], "from the cache"
    monkeypatch.setattr("workload.tasks.task.CODE", "of another version")
    assert open_flags(*flags).examples["train"]["id"][:] == ["5", "6"]


def test_a_folder_of_reviews_without_one_kind_is_refused(tmp_path):
    write(tmp_path / "pos" / "0_9.txt", "Good.")
    with pytest.raises(InputError, match="has no neg/"):
        open_flags("--task", "imdb", "--model", "tiny", "--train_file", tmp_path, "--eval_file", tmp_path)


@pytest.mark.parametrize("blank", ["", " ", "\t\t", " \t ", "\u2003", "\x0c"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("read, name, lines", [
    (read_documents, "x.jsonl", ['{"text": "A."}', '{"text": "B."}']),
    (read_documents, "x.json", ['{"text": "A."}', '{"text": "B."}']),
    (read_reviews, "x.csv", ["text,label", "A.,1", "B.,0"]),
    (read_pairs, "x.tsv", [GLUE.strip(), "0\t7n\tx\tA.\tA.\tx\tneutral", "1\t8n\tx\tB.\tB.\tx\tneutral"]),
])
def test_blank_lines_are_skipped(tmp_path, read, name, lines, end, blank):
    lines = [word for line in lines for word in (blank, line, blank)]
    (tmp_path / name).write_bytes(end.join(lines).encode())
    assert [row["text"] for row in read(str(tmp_path / name))] == ["A.", "B."]
    (tmp_path / name).write_bytes(end.join([*lines, "wrong"]).encode())
    with pytest.raises(InputError, match=f"line {len(lines) + 1}"):
        list(read(str(tmp_path / name)))


# ---------------------------------------------------------------------- columns of one meaning

@pytest.mark.parametrize("head, row", [
    ("text,label,sentiment", "A.,1,positive"), ("sentiment,review,label", " Neg,A.,0"),
    ("text,review,label", "A.,A. ,1"), ("text,label,sentiment", "A.,,pos"), ("text,review,sentiment", ",A.,0")])
def test_columns_that_agree_are_read(tmp_path, head, row):
    reviews = list(read_reviews(write(tmp_path / "x.csv", f"{head}\n{row}\n")))
    assert [(review["text"], review["label"]) for review in reviews] == [("A.", int("1" in row or "pos" in row))]


@pytest.mark.parametrize("read, head, row, told", [
    (read_reviews, "text,label,sentiment", "A.,0,positive", "label is '0', but sentiment is 'positive'"),
    (read_reviews, "sentiment,text,label", "neg,A.,1", "label is '1', but sentiment is 'neg'"),
    (read_reviews, "text,label,sentiment", "A.,1,0.93", "label is '1', but sentiment is '0.93'"),
    (read_reviews, "text,review,label", "A.,B.,1", "text is 'A.', but review is 'B.'"),
    (read_pairs, "pairID,sentence1,sentence2,label,gold_label", "1,A.,B.,neutral,entailment",
     "gold_label is 'entailment', but label is 'neutral'"),
    (read_pairs, "pairID,sentence1,sentence2,label,gold_label", "1,A.,B.,2,entailment",
     "gold_label is 'entailment', but label is '2'"),
    (read_pairs, "pairID,sentence1,sentence2,label,gold_label", "1,A.,B.,0,-", "gold_label is '-', but label is '0'"),
    (read_pairs, "pairID,sentence1,premise,sentence2,gold_label", "1,A.,C.,B.,neutral",
     "sentence1 is 'A.', but premise is 'C.'"),
    (read_pairs, "pairID,sentence1,sentence2,hypothesis,gold_label", "1,A.,B.,C.,neutral",
     "sentence2 is 'B.', but hypothesis is 'C.'"),
])
def test_columns_that_contradict_each_other_are_refused(tmp_path, read, head, row, told):
    content = f"{head}\n{row}\n"
    path = write(tmp_path / "x.csv", content if read is read_reviews else content.replace(",", "\t"))
    with pytest.raises(InputError) as error:
        list(read(path))
    assert str(error.value) == f"{path}: line 2: {told}; remove one of these columns"


def test_pairs_are_read_by_either_name_of_a_column(tmp_path):
    path = write(tmp_path / "x.tsv", "pairID\tpremise\thypothesis\tgold_label\tlabel\n1\tA.\tB.\tneutral\t1\n"
                 "2\tC.\tD.\t-\t-1\n3\tE.\tF.\t\tcontradiction\n")
    assert [(row["id"], row["text"], row["pair"], row["label"]) for row in read_pairs(path)] == [
        ("1", "A.", "B.", 1), ("3", "E.", "F.", 2)]


def test_two_texts_in_a_line_of_json_have_to_agree(tmp_path):
    same = '{"text": "A.", "content": "A. "}\n{"text": "", "content": "B."}\n{"text": "C.", "content": null}\n'
    assert [row["text"] for row in read_documents(write(tmp_path / "x.jsonl", same))] == ["A. ", "B.", "C."]
    with pytest.raises(InputError, match="line 4: its 'content' and 'text' differ; remove one of them"):
        list(read_documents(write(tmp_path / "x.jsonl", same + '{"text": "D.", "content": "E."}\n')))


@pytest.mark.parametrize("name, is_json", [
    ("x.jsonl.1.gz", True), ("X.JSONL", True), ("x.ndjson", True), ("x.JSON.GZ", True), ("x.txt.jsonl", True),
    ("x.jsonl.txt", False), ("x.json.d.txt.gz", False), ("x", False), ("x.jl", False)])
def test_the_name_says_whether_a_file_holds_json_and_json_is_never_taken_for_text(tmp_path, name, is_json):
    path, pack = tmp_path / name, gzip.compress if name.lower().endswith("gz") else bytes
    path.write_bytes(pack(b'\n{"text": "A."}\n'))
    if is_json:
        assert list(read_documents(str(path))) == [{"text": "A."}]
    else:
        with pytest.raises(InputError, match="line 2: is JSON; use a name that ends in .jsonl"):
            list(read_documents(str(path)))
        path.write_bytes(pack(b'{"A": 1}\n\n[B]'))
        assert list(read_documents(str(path))) == [{"text": '{"A": 1}'}, {"text": "[B]"}]


# ---------------------------------------------------------------------- ids, under which predictions are written

def pairs(path, *ids):
    labels = ("neutral", "entailment")
    return write(path, GLUE + "".join(f"{number}\t{pair}\ttravel\tA {number}.\tB.\tx\t{labels[number % 2]}\n"
                                      for number, pair in enumerate(ids)))


@pytest.mark.parametrize("ids, told", [
    (("7n", "8n", "7n"), "line 4: pairID '7n' occurs twice, first in line 2"), (("", ""), "line 2: pairID '' is empty"),
    (("7n", "  "), "line 3: pairID '  ' is empty"),
    (("7n", "mismatched:7n"), "line 3: pairID 'mismatched:7n' begins with 'mismatched:'")])
@pytest.mark.parametrize("flag", ["--eval_file", "--eval_mismatched_file"])
def test_ids_that_would_lose_a_prediction_are_refused(tmp_path, ids, told, flag):
    good, bad = pairs(tmp_path / "good.tsv", "7n", "8n"), pairs(tmp_path / "bad.tsv", *ids)
    files = {"--train_file": good, "--eval_file": good, "--eval_mismatched_file": good, flag: bad}
    with pytest.raises(InputError) as error:
        open_flags("--task", "mnli", "--model", "tiny", *(word for file in files.items() for word in file))
    assert str(error.value).startswith(f"{bad}: {told}") and "a unique pairID" in str(error.value)


def test_pairs_to_train_on_may_share_an_id_but_stay_apart_in_the_record_of_the_order(tmp_path):
    train, good = pairs(tmp_path / "train.tsv", "7n", "7n", "", "", "8n"), pairs(tmp_path / "good.tsv", "7n", "8n")
    task = open_flags("--task", "mnli", "--model", "tiny", "--train_file", train, "--eval_file", good)
    assert task.examples["train"]["id"][:] == ["7n", "7n#1", "#2", "#3", "8n"]


def test_every_evaluation_sample_has_its_prediction(tmp_path):
    same = pairs(tmp_path / "dev.tsv", "7n", "8n", "07n", "7N", " 7n")
    folder = tmp_path / "reviews"
    for name in ("neg/0_1", "neg/1_1", "pos/0_1", "pos/1_1"):
        write(folder / f"{name}.txt", "The same words.")
    csv_file = write(tmp_path / "x.csv", "id,text,label\n7,Same.,0\n7,Same.,1\n")
    for task, files in (("mnli", (same, same, same)), ("imdb", (folder, folder)), ("imdb", (csv_file, csv_file))):
        flags = zip(("--train_file", "--eval_file", "--eval_mismatched_file"), files, strict=False)
        task = open_flags("--task", task, "--model", "tiny", *(word for flag in flags for word in flag))
        task.load()
        rows = len(task.samples("validation"))
        judged = {row: np.eye(len(task.classes))[row % len(task.classes)] for row in range(rows)}
        assert list(task.score(judged)[1].values()) == [task.classes[row % len(task.classes)] for row in range(rows)]


def test_the_samples_csv_is_what_spreadsheets_read():
    with open(ROOT / "data" / "imdb" / "eval.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == [row["label"] for row in read_reviews(
        str(ROOT / "data" / "imdb" / "eval.csv"))]

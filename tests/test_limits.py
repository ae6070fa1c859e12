"""Limits on examples: one draw for every seed, from each class. Data of one class alone are refused."""

import numpy as np
import pytest

from measurement.run_json import workload_hash
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError
from workload.tasks.limits import draw
from workload.tasks.registry import open_task

pytestmark = pytest.mark.usefixtures("cache")
CLASSES = ("entailment", "neutral", "contradiction")


def opened(task, *flags):
    return open_task(parse_arguments(Arguments, ["--task", task, "--model", "tiny", *map(str, flags)]))


def reviews(path, labels):
    path.write_text("text,label\n" + "".join(f"Film {number}.,{label}\n" for number, label in enumerate(labels)))
    return path


def folder_of_reviews(path, labels):
    for number, label in enumerate(labels):
        (path / ("neg", "pos")[label]).mkdir(parents=True, exist_ok=True)
        (path / ("neg", "pos")[label] / f"{number}_5.txt").write_text(f"Film {number}.")
    return path


def pairs(path, labels):
    path.write_text("pairID\tsentence1\tsentence2\tgold_label\n" + "".join(
        f"{number}\tA {number}.\tB.\t{CLASSES[label]}\n" for number, label in enumerate(labels)))
    return path


# ---------------------------------------------------------------------- the draw

@pytest.mark.parametrize("sizes, limit, kept", [
    ([12500, 12500], 64, [32, 32]), ([12500, 12500], 2, [1, 1]), ([900, 100], 10, [9, 1]), ([900, 100], 50, [45, 5]),
    ([5, 5, 9990], 3, [1, 1, 1]), ([5, 5, 9990], 100, [1, 1, 98]), ([1, 1, 1], 2, None), ([7], 3, [3]),
])
def test_each_class_is_drawn_in_proportion_at_least_once(sizes, limit, kept):
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = draw(classes, limit)
    assert len(rows) == len(set(rows)) == limit and list(rows) == sorted(rows)
    assert kept is None or np.bincount(classes[rows], minlength=len(sizes)).tolist() == kept


def test_a_draw_is_spread_over_the_file_and_holds_every_smaller_one():
    classes = np.repeat([0, 1, 2], [100, 3000, 6900])
    draws = [set(draw(classes, limit)) for limit in (3, 50, 51, 1000, 9999)]
    assert all(smaller < larger for smaller, larger in zip(draws, draws[1:], strict=False))
    tenths = np.bincount(draw(np.zeros(10_000), 1000) // 1000, minlength=10)
    assert tenths.min() > 70 and tenths.max() < 130


def test_a_draw_is_the_same_everywhere_and_for_ever():
    """Else records of one workload would be of other examples."""
    assert draw(np.repeat([0, 1], [60, 40]), 10).tolist() == [17, 33, 36, 39, 52, 56, 80, 81, 84, 93]


@pytest.mark.parametrize("task", ["squad_v2", "imdb", "mnli", "oscar"])
def test_a_limit_keeps_the_same_examples_for_every_seed_in_the_files_order(task):
    whole, one, other = (opened(task, "--sample", *flags) for flags in (
        (), ("--max_train_examples", 30, "--max_eval_examples", 9),
        ("--max_train_examples", 30, "--max_eval_examples", 9, "--seed", 7)))
    assert set(one.examples) == set(whole.examples)
    for split, examples in one.examples.items():
        kept, everything = examples.to_list(), whole.examples[split].to_list()
        assert kept == other.examples[split].to_list() and len(kept) == (30 if split == "train" else 9)
        places = [everything.index(example) for example in kept]
        assert places == sorted(places) and places[-1] >= len(kept), "the first ones"
        assert one.draws[split] == {"from": len(everything), "seed": 1, "by_class": task in ("imdb", "mnli")}
        assert whole.draws[split] is None
        if task in ("imdb", "mnli"):
            counts = np.bincount(examples["label"])
            assert max(counts) - min(counts) <= 1, "equal shares, as in the sample"


def test_a_limit_that_is_not_reached_draws_nothing(tmp_path):
    path = reviews(tmp_path / "x.csv", [0, 1, 1])
    task = opened("imdb", "--train_file", path, "--eval_file", path, "--max_train_examples", 3,
                  "--max_eval_examples", 99)
    assert task.draws == {"train": None, "validation": None}
    assert task.examples["train"]["id"][:] == ["0", "1", "2"]


def test_a_sorted_folder_is_drawn_from_both_kinds(tmp_path):
    folder = folder_of_reviews(tmp_path / "train", [0] * 40 + [1] * 40)
    task = opened("imdb", "--train_file", folder, "--eval_file", folder, "--max_train_examples", 16,
                  "--max_eval_examples", 4)
    assert task.examples["train"]["label"][:] == [0] * 8 + [1] * 8
    assert task.examples["validation"]["label"][:] == [0] * 2 + [1] * 2


def test_two_limits_are_two_entries_of_the_cache():
    tasks = [opened("imdb", "--sample", "--max_train_examples", limit) for limit in (20, 21, 20)]
    for task in tasks:
        task.load()
    assert [len(task.features["train"]) for task in tasks] == [20, 21, 20]
    prints = [task.features["train"]._fingerprint for task in tasks]
    assert prints[0] == prints[2] != prints[1]
    assert tasks[2].features["train"].cache_files == tasks[0].features["train"].cache_files


def test_the_workload_knows_how_a_limit_draws(monkeypatch):
    """A record whose limit kept the first N, or drew otherwise, is of another workload."""
    flags = vars(opened("imdb", "--sample").arguments)
    limited = flags | {"max_eval_examples": 50}
    content = dict.fromkeys(("model", "tokenizer", "data"))
    before = [workload_hash(each, content) for each in (flags, limited)]
    monkeypatch.setattr("measurement.run_json.DRAW_SEED", 2)
    after = [workload_hash(each, content) for each in (flags, limited)]
    assert before[0] == after[0] and before[1] != after[1]


# ---------------------------------------------------------------------- one class

@pytest.mark.parametrize("task, write, label, name", [("imdb", reviews, 1, "positive"),
                                                       ("mnli", pairs, 2, "contradiction")])
def test_one_class_alone_is_refused_in_every_part(tmp_path, task, write, label, name):
    good, bad = write(tmp_path / "good", [0, label]), write(tmp_path / "bad", [label, label])
    parts = [("--train_file", bad, "--eval_file", good), ("--train_file", good, "--eval_file", bad)]
    if task == "mnli":
        parts += [("--train_file", good, "--eval_file", good, "--eval_mismatched_file", bad)]
    for files in parts:
        with pytest.raises(InputError) as error:
            opened(task, *files)
        assert str(error.value) == f"{bad}: every example is {name!r}; use data of at least two classes"


@pytest.mark.parametrize("task, flag, least", [
    ("imdb", "--max_train_examples", 2), ("imdb", "--max_eval_examples", 2), ("mnli", "--max_train_examples", 3)])
def test_a_limit_below_the_number_of_classes_is_refused(task, flag, least):
    with pytest.raises(InputError, match=f"{flag} {least - 1}: .* has {least} classes.*; use {least} or more"):
        opened(task, "--sample", flag, least - 1)
    opened(task, "--sample", flag, least)

"""Which questions are trained on and scored: of files or the Hub, within limits, with or without an answer."""

import numpy as np
import pytest

from tests.shared.squad import ADA, TWO_QUESTIONS, ask, load_squad, write_squad
from workload.arguments import Arguments, parse_arguments
from workload.tasks.squad_v2 import SquadV2

pytestmark = pytest.mark.usefixtures("cache")


def test_training_and_evaluation_questions_come_from_their_own_file(tmp_path):
    train = write_squad(tmp_path / "train.json", (ADA, TWO_QUESTIONS))
    evaluation = write_squad(tmp_path / "eval.json", ("Nobody.", [ask("e1", "Nobody.", "Nobody")]))
    task = load_squad(train, evaluation=evaluation)
    assert task.examples["train"]["id"][:] == ["q1", "q2"]
    assert task.examples["validation"]["id"][:] == ["e1"]


def test_answerable_only_leaves_the_unanswerable_out(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    task = load_squad(path, "--answerable_only")
    assert [task.examples[split]["id"][:] for split in ("train", "validation")] == [["q1"], ["q1"]]
    assert load_squad(path).examples["train"]["id"][:] == ["q1", "q2"], "the cache must tell the two apart"


def test_only_the_questions_that_a_limit_keeps_are_trained_and_scored(tmp_path):
    questions = [ask(f"q{number}", ADA, "Ada") for number in range(7)]
    path = write_squad(tmp_path / "squad.json", (ADA, questions))
    task = load_squad(path, "--max_train_examples", 3, "--max_eval_examples", 2)
    kept = task.examples["train"]["id"][:]
    assert len(kept) == 3 and kept == sorted(kept)
    assert task.features["train"]["feature_id"][:] == [f"{question}:0" for question in kept]
    one, other = task.examples["validation"]["id"][:]
    logits = {row: np.zeros((feature["length"], 2), dtype=np.float32)
              for row, feature in enumerate(task.features["validation"])}
    logits[0][task.features["validation"][0]["start"], 0] = logits[0][task.features["validation"][0]["end"], 1] = 9
    logits[1][0] = 9
    scores, answers = task.score(logits)
    assert answers == {one: "Ada", other: ""}
    assert scores == {"exact_match": 50, "f1": 50}


def test_a_limit_above_the_number_of_questions_keeps_all(tmp_path):
    path = write_squad(tmp_path / "squad.json", (ADA, TWO_QUESTIONS))
    task = load_squad(path, "--max_train_examples", 99, "--max_eval_examples", 1, "--answerable_only")
    assert [len(task.examples[split]) for split in ("train", "validation")] == [1, 1]


def test_the_hubs_data_set_gives_what_the_files_give(tmp_path, monkeypatch):
    """From a folder laid out as the Hub's: the code that loads it is the one that would load it from there."""
    flags = ["--model", "tiny", "--max_seq_length", "128", "--max_train_examples", "40", "--max_eval_examples", "40"]
    from_files = SquadV2(parse_arguments(Arguments, ["--sample", *flags]))
    from_files.load()
    for split, rows in from_files.examples.items():
        rows = rows.add_column("title", ["A title"] * len(rows))
        rows.to_parquet(tmp_path / "rajpurkar" / "squad_v2" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr("workload.tasks.squad_v2.HUB_DATASET", str(tmp_path / "rajpurkar" / "squad_v2"))
    for more in ([], ["--answerable_only"]):
        from_hub = SquadV2(parse_arguments(Arguments, [*flags, *more]))
        from_hub.load()
        for split, rows in from_hub.features.items():
            expected = [row for row in from_files.features[split] if not more or row["end"] > 0]
            assert [{**row, "example_index": 0} for row in rows] == [{**row, "example_index": 0} for row in expected]

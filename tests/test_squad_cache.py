"""The cache of tokenised windows: when it is used, and what its key depends on."""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.shared.runs import ROOT
from tests.shared.squad import ADA, TWO_QUESTIONS, ask, covered_text, load_squad, random_words, write_squad

pytestmark = pytest.mark.usefixtures("cache")
SECOND_START = """
import json, sys
from workload.arguments import Arguments, parse_arguments
from workload.tasks.squad_v2 import SquadV2
task = SquadV2(parse_arguments(Arguments, sys.argv[1:]))
task.load()
print(json.dumps({split: [f._fingerprint, [file["filename"] for file in f.cache_files]]
                  for split, f in task.features.items()}))
"""


def cached(task):
    return {split: [features._fingerprint, [file["filename"] for file in features.cache_files]]
            for split, features in task.features.items()}


def test_a_second_start_takes_features_from_the_cache(tmp_path, cache):
    train = write_squad(tmp_path / "train.json", (ADA, TWO_QUESTIONS))
    evaluation = write_squad(tmp_path / "eval.json", (ADA, TWO_QUESTIONS[:1]))
    first = load_squad(train, evaluation=evaluation)
    files = [file for _, names in cached(first).values() for file in names]
    before = {file: (os.stat(file).st_mtime_ns, os.stat(file).st_ino) for file in files}
    assert len(files) == 2
    assert cached(load_squad(train, evaluation=evaluation)) == cached(first)
    # A new process is what a user's second start is.
    command = [sys.executable, "-c", SECOND_START, "--train_file", train, "--eval_file", evaluation, "--model", "tiny"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == cached(first)
    assert {file: (os.stat(file).st_mtime_ns, os.stat(file).st_ino) for file in files} == before


def test_a_changed_file_of_the_same_name_is_read_anew(tmp_path, letters):
    path = tmp_path / "squad.json"
    write_squad(path, (ADA, [ask("q1", ADA, "Ada")]))
    first, stamp = load_squad(path, model=letters), path.stat()
    write_squad(path, (ADA, [ask("q1", ADA, "wro")]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size, "neither size nor time tell the two apart"
    second = load_squad(path, model=letters)
    assert [covered_text(task.features["validation"][0], ADA) for task in (first, second)] == ["Ada", "wro"]
    assert second.examples["validation"][0]["answers"]["text"] == ["wro"]


@pytest.mark.parametrize("flags, model", [
    (("--max_seq_length", 24), "tiny"), (("--doc_stride", 100), "tiny"), ((), "letters"),
])
def test_what_features_depend_on_is_part_of_the_caches_key(tmp_path, letters, flags, model):
    context = " ".join(random_words(random.Random(0), 300))
    path = write_squad(tmp_path / "squad.json", (context, [ask("q1", context)]))
    plain = load_squad(path)
    other = load_squad(path, *flags, model=letters if model == "letters" else model)
    for split in ("train", "validation"):
        assert other.features[split]["input_ids"][:] != plain.features[split]["input_ids"][:]


def test_tokenising_in_several_processes_gives_the_same_in_the_same_order(tmp_path, monkeypatch):
    questions = [ask(f"q{number}", ADA, "Ada", question="Who? " * (1 + number % 7)) for number in range(50)]
    path = write_squad(tmp_path / "squad.json", (ADA, questions))
    one = load_squad(path)
    assert all(features.cache_files for features in one.features.values()), "held in memory, not mapped"
    monkeypatch.setattr("workload.tasks.task.EXAMPLES_A_PROCESS", 20)
    monkeypatch.setattr("workload.tasks.task.usable_cores", lambda: 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another")
    several = load_squad(path)
    assert len(several.features["train"].cache_files) == 2
    for split, features in one.features.items():
        assert several.features[split].to_dict() == features.to_dict()

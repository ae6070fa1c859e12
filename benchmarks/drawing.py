"""Drawing questions from a SQuAD file and running a script, as several benchmarks do."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from measurement.table import read_rows

ROOT = Path(__file__).resolve().parents[1]


def draw(file: str, folder: Path, training: int, evaluation: int, seed: int) -> list[str]:
    """Write two SQuAD files with questions from all of `file`; returns the flags that name them."""
    articles = json.loads(Path(file).read_text(encoding="utf-8"))["data"]
    questions = [(paragraph["context"], question) for article in articles for paragraph in article["paragraphs"]
                 for question in paragraph["qas"]]
    random.Random(seed).shuffle(questions)
    if len(questions) < training + evaluation:
        sys.exit(f"error: {file} has {len(questions)} questions; {training + evaluation} are needed; lower --steps")
    flags = []
    for name, part in (("train", questions[:training]), ("eval", questions[training:training + evaluation])):
        paragraphs = [{"context": context, "qas": [question]} for context, question in part]
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"version": "v2.0", "data": [{"title": name, "paragraphs": paragraphs}]}))
        flags += [f"--{name}_file", str(path)]
    return flags


def run(words: list[str], environment: dict[str, str] | None = None) -> None:
    """Run Python with these words in the project's folder; if it fails, exit with its last line.

    Args:
        environment: variables to add to this process's.
    """
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | (environment or {}),
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{words[0]} failed")


def summary(folder: Path) -> dict[str, str]:
    """The one row of a run's summary.csv."""
    return read_rows(folder / "summary.csv")[0]

"""Seconds from the command to the end of the first step with as many questions as SQuAD v2 has, twice.

    python -m benchmarks.start_up --model FOLDER --file squad.json
    python -m benchmarks.start_up --model FOLDER --file squad.json --script pipeline.py --num_gpus 2

The questions of the file are repeated under new names until there are as many as in SQuAD v2's training data. The first
time they are read, checked and tokenised; then both come from the cache, which is a folder of its own here.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.drawing import ROOT
from workload.flag_groups import Parser

QUESTIONS = 130_319  # SQuAD v2's, to train on


def repeat(file: str, path: Path) -> None:
    """Write a SQuAD file with the questions of another, again and again."""
    articles, made, count = json.loads(Path(file).read_text(encoding="utf-8"))["data"], [], 0
    while count < QUESTIONS:
        for article in articles:
            paragraphs = [{"context": paragraph["context"], "qas": [
                question | {"id": f"{question['id']}-{count}"} for question in paragraph["qas"]]}
                for paragraph in article["paragraphs"]]
            made.append({"title": article.get("title", ""), "paragraphs": paragraphs})
            count += sum(len(paragraph["qas"]) for paragraph in paragraphs)
    path.write_text(json.dumps({"version": "v2.0", "data": made}), encoding="utf-8")


def main() -> None:
    parser = Parser()
    parser.add_argument("--model", required=True, help="Hub name or local folder of a BERT")
    parser.add_argument("--file", required=True, help="a SQuAD file, whose questions are repeated")
    parser.add_argument("--script", default="bert_baseline.py")
    parser.add_argument("--num_gpus", default="1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        repeat(options.file, Path(name) / "train.json")
        for time in ("first", "second"):
            done = subprocess.run(
                [sys.executable, options.script, "--model", options.model, "--train_file", f"{name}/train.json",
                 "--eval_file", options.file, "--max_eval_examples", "4", "--global_batch_size", "8",
                 "--max_steps", "1", "--num_gpus", options.num_gpus, "--output_dir", name, "--run_name", time],
                cwd=ROOT, env=os.environ | {"HF_DATASETS_CACHE": f"{name}/cache"}, stdout=subprocess.DEVNULL)
            if done.returncode:
                sys.exit(done.returncode)
            with open(f"{name}/{time}/steps.csv", newline="") as steps:
                step = next(csv.DictReader(steps))
            print(f"{options.script} x {options.num_gpus}, {time} time: the first step ended after "
                  f"{float(step['elapsed_s']):.1f} s, {float(step['step_s']):.1f} s of them its own", flush=True)


if __name__ == "__main__":
    main()

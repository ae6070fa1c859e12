"""The embedded samples can be learned: by their tiny models, from random weights, in a hundred steps or two."""

import numpy as np
import pytest

from workload.arguments import Arguments, parse_arguments
from workload.tasks.registry import open_task

FLAGS = ("--num_gpus", "1", "--global_batch_size", "32", "--micro_batch_size", "32", "--learning_rate", "1e-3",
         "--warmup_steps", "10", "--max_grad_norm", "1", "--noise_scale_steps", "0", "--max_eval_examples", "400")

pytestmark = pytest.mark.usefixtures("cache")


def sample_of(task: str):
    opened = open_task(parse_arguments(Arguments, ["--task", task, "--sample", "--model", "tiny", "--max_seq_length",
                                                   "64"]))
    opened.load()
    return opened


@pytest.mark.parametrize("task, steps", [("imdb", "90"), ("mnli", "130")])
def test_classes_are_told_apart_far_better_than_by_the_commonest(task, steps, train):
    run = train("bert_baseline.py", *FLAGS, "--task", task, "--max_steps", steps, "--max_seq_length", "64")
    for split, metric in (("validation", "accuracy"), ("validation_mismatched", "accuracy_mismatched")):
        if run.summary[metric]:
            labels = np.array(sample_of(task).features[split]["label"])
            commonest = 100 * np.bincount(labels).max() / len(labels)
            assert float(run.summary[metric]) > commonest + 15, metric


def test_text_is_predicted_far_better_than_by_how_often_its_tokens_occur(train):
    run = train("bert_baseline.py", *FLAGS, "--task", "oscar", "--max_steps", "50", "--max_seq_length", "64")
    task = sample_of("oscar")
    train_tokens, tokens = (np.concatenate(task.features[split]["input_ids"]) for split in ("train", "validation"))
    counts = np.bincount(train_tokens, minlength=len(task.tokenizer)) + 1
    unigram = np.exp(-np.log(counts / counts.sum())[tokens].mean())
    assert float(run.summary["perplexity"]) < unigram / 2

"""The proof of test_equivalence.py for the other tasks: what a strategy computes does not depend on what is learned."""

import pytest

from tests.conftest import stray_lines
from tests.test_equivalence import assert_same_computation, relative

TASKS = {"imdb": ("--max_seq_length", "40", "--max_grad_norm", "2"), "mnli": ("--max_grad_norm", "1.2"),
         "oscar": ("--max_seq_length", "64", "--max_grad_norm", "3")}
STRATEGIES = {
    "DDP x 2": ("bert_baseline.py", "--num_gpus", "2"),
    "ZeRO-3 x 2": ("zero.py", "--num_gpus", "2", "--stage", "3"),
    "pipeline x 2": ("pipeline.py", "--num_gpus", "2"),
    "torch 1f1b x 2": ("torch_pipeline.py", "--num_gpus", "2"),
}
# GPT-2's first and last layer share their weight; where they are, and how often, differs.
SHARED = {
    "pipeline x 1": ("pipeline.py", "--num_gpus", "1", "--micro_batches", "8"),
    "pipeline 2 x 2": ("pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch 1f1b 2 x 2": ("torch_pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch zero_bubble x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zero_bubble"),
    "torch zbv x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zbv"),
    "FSDP x 2": ("fsdp.py", "--num_gpus", "2"),
}
ROWS = [*((task, strategy) for task in TASKS for strategy in STRATEGIES), *(("oscar", strategy) for strategy in SHARED)]


def run_of(train, task, strategy=None):
    command = (STRATEGIES | SHARED).get(strategy, ("bert_baseline.py", "--num_gpus", "1"))
    return train(*command, "--task", task, "--max_steps", "3", *TASKS[task])


@pytest.mark.parametrize("task, strategy", ROWS)
def test_strategy_computes_what_one_process_computes(task, strategy, train):
    run, one = run_of(train, task, strategy), run_of(train, task)
    assert_same_computation(run, one)
    for norms in ("micro_batch_squared_norm", "batch_squared_norm"):
        assert relative(run.column(norms), one.column(norms)) < 2e-4, "a shared weight's gradient counts once"
    for name in ("accuracy", "accuracy_mismatched", "perplexity"):
        assert run.summary[name] == pytest.approx(one.summary[name]) or relative(
            [float(run.summary[name])], [float(one.summary[name])]) < 1e-5
    assert not stray_lines(run.output)


@pytest.mark.parametrize("task", TASKS)
def test_clipping_is_active(task, train):
    assert min(run_of(train, task).column("grad_norm")) > float(TASKS[task][-1])


def test_batches_with_and_without_padding_are_among_them(train):
    """Those without have no attention mask: stages exchange other tensors then."""
    rows = run_of(train, "imdb").rows("steps.csv")
    padding = [0, *(int(row["padded_tokens"]) - int(row["real_tokens"]) for row in rows)]
    assert {later > earlier for earlier, later in zip(padding, padding[1:], strict=False)} == {True, False}


@pytest.mark.parametrize("strategy", ["pipeline x 2", "torch 1f1b x 2", "torch zbv x 2", "pipeline 2 x 2"])
def test_a_weight_that_two_stages_share_counts_once(strategy, train):
    ranks = run_of(train, "oscar", strategy).description["ranks"]
    [whole] = run_of(train, "oscar").description["ranks"]
    for replica in {rank["replica"] for rank in ranks}:
        stages = [rank for rank in ranks if rank["replica"] == replica]
        assert sum(stage["parameters"] for stage in stages) == whole["parameters"]
        assert sorted(name for stage in stages for name in stage["layers"]) == sorted(whole["layers"])
    assert run_of(train, "oscar", strategy).description["parameters"] == whole["parameters"]


def test_the_saved_gpt2_has_one_weight_at_both_ends(train):
    from transformers import GPT2LMHeadModel

    for strategy in (*STRATEGIES, *SHARED):
        run = run_of(train, "oscar", strategy)
        assert "lm_head.weight" not in run.weights(), "saved once"
        model = GPT2LMHeadModel.from_pretrained(run.folder / "model")
        assert model.lm_head.weight is model.transformer.wte.weight

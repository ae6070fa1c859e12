"""The proof of test_equivalence.py for the other tasks."""

import pytest

from tests.shared.runs import ONE_PROCESS, OTHER_TASKS, assert_same_computation, relative, stray_lines

STRATEGIES = {
    "DDP x 2": ("bert_baseline.py", "--num_gpus", "2"),
    "ZeRO-3 x 2": ("zero.py", "--num_gpus", "2", "--stage", "3"),
    "pipeline x 2": ("pipeline.py", "--num_gpus", "2"),
    "torch 1f1b x 2": ("torch_pipeline.py", "--num_gpus", "2"),
    "tensor x 2": ("tensor_parallel.py", "--num_gpus", "2"),
    "tensor sequence x 2": ("tensor_parallel.py", "--num_gpus", "2", "--sequence_parallel"),
}
# GPT-2's first and last layer share their weight: here on one stage, on two, or sharded.
SHARED = {
    "pipeline x 1": ("pipeline.py", "--num_gpus", "1", "--micro_batches", "8"),
    "pipeline 2 x 2": ("pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch 1f1b 2 x 2": ("torch_pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch zero_bubble x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zero_bubble"),
    "torch zbv x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zbv"),
    "FSDP x 2": ("fsdp.py", "--num_gpus", "2"),
    "HF Trainer ZeRO-2 x 2": ("hf_trainer.py", "--num_gpus", "2", "--deepspeed_config", "experiments/zero2.json"),
    "ZeRO-3 hpZ 2 x 2": ("zero.py", "--num_gpus", "4", "--stage", "3", "--secondary_shard_group", "2"),
    "FSDP hybrid 2 x 2": ("fsdp.py", "--num_gpus", "4", "--shard_group", "2"),
    "tensor x 1": ("tensor_parallel.py", "--num_gpus", "1"),
    "tensor 2 x 2": ("tensor_parallel.py", "--num_gpus", "4", "--tensor_parallel", "2"),
    "tensor sequence FSDP 2 x 2": ("tensor_parallel.py", "--num_gpus", "4", "--tensor_parallel", "2",
                                   "--sequence_parallel", "--shard_replicas"),
}
ROWS = [*((task, name) for task in OTHER_TASKS for name in STRATEGIES), *(("oscar", name) for name in SHARED)]


def commands(*names: str) -> list:
    return [pytest.param((STRATEGIES | SHARED)[name], id=name) for name in names]


def run_of(train, task, command=ONE_PROCESS):
    return train(*command, "--task", task, "--max_steps", "3", *OTHER_TASKS[task])


@pytest.mark.parametrize("task, command", [pytest.param(task, (STRATEGIES | SHARED)[name], id=f"{task}-{name}")
                                           for task, name in ROWS])
def test_strategy_computes_what_one_process_computes(task, command, train):
    run, one = run_of(train, task, command), run_of(train, task)
    assert_same_computation(run, one)
    for norms in ("micro_batch_squared_norm", "batch_squared_norm"):
        assert relative(run.column(norms), one.column(norms)) < 2e-4, "a shared weight's gradient counts once"
    for name in ("accuracy", "accuracy_mismatched", "perplexity"):
        assert run.summary[name] == pytest.approx(one.summary[name]) or relative(
            [float(run.summary[name])], [float(one.summary[name])]) < 1e-5
    assert not stray_lines(run.output)


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_clipping_is_active(task, train):
    assert min(run_of(train, task).column("grad_norm")) > float(OTHER_TASKS[task][-1])


def test_batches_with_and_without_padding_are_among_them(train):
    """Batches without padding have no attention mask, so stages exchange other tensors."""
    rows = run_of(train, "imdb").rows("steps.csv")
    padding = [0, *(int(row["padded_tokens"]) - int(row["real_tokens"]) for row in rows)]
    assert {later > earlier for earlier, later in zip(padding, padding[1:], strict=False)} == {True, False}


@pytest.mark.parametrize("command", commands("pipeline x 2", "torch 1f1b x 2", "torch zbv x 2", "pipeline 2 x 2"))
def test_a_weight_that_two_stages_share_counts_once(command, train):
    ranks = run_of(train, "oscar", command).description["ranks"]
    [whole] = run_of(train, "oscar").description["ranks"]
    for replica in {rank["replica"] for rank in ranks}:
        stages = [rank for rank in ranks if rank["replica"] == replica]
        assert sum(stage["parameters"] for stage in stages) == whole["parameters"]
        assert sorted(name for stage in stages for name in stage["layers"]) == sorted(whole["layers"])
    assert run_of(train, "oscar", command).description["parameters"] == whole["parameters"]


@pytest.mark.parametrize("command", commands(*STRATEGIES, *SHARED))
def test_the_saved_gpt2_has_one_weight_at_both_ends(command, train):
    from transformers import GPT2LMHeadModel

    run = run_of(train, "oscar", command)
    assert "lm_head.weight" not in run.weights(), "saved once"
    model = GPT2LMHeadModel.from_pretrained(run.folder / "model")
    assert model.lm_head.weight is model.transformer.wte.weight

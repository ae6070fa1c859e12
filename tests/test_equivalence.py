"""The proof that comes before any timing: every strategy computes what one process computes."""

import json

import pytest
import torch

from tests.shared.runs import (
    ONE_PROCESS,
    PIPELINES,
    ROWS,
    SHORT,
    assert_same_computation,
    relative,
    rows,
    stray_lines,
    weight_difference,
)


@pytest.mark.parametrize("command", rows(*ROWS))
def test_strategy_computes_what_one_process_computes(command, train):
    assert_same_computation(train(*command), train(*ONE_PROCESS))


@pytest.mark.parametrize("row", ["DDP x 2", "ZeRO-2 x 2", "pipeline x 2", "torch gpipe x 2", "HF Trainer x 2"])
def test_compiled_layers_compute_the_same(row, train, slow_lane):
    """As FSDP does, one of ROWS; ZeRO-3 and DataParallel refuse --compile. Few lengths, as each is compiled anew."""
    flags = ("--max_seq_length", "40", "--max_steps", "3", "--max_eval_examples", "8")
    assert_same_computation(train(*ROWS[row], *flags, "--compile"), train(*ONE_PROCESS, *flags))


def test_the_job_is_one_that_would_show_a_difference(train):
    reference = train(*ONE_PROCESS)
    assert len(reference.rows("steps.csv")) == 8
    assert min(reference.column("grad_norm")) > 3.0, "clipping should be active in every step"
    tokens = reference.column("padded_tokens")
    assert len({after - before for before, after in zip(tokens, tokens[1:], strict=False)}) > 1, "lengths should differ"


def test_plain_shuffling_is_another_order_of_the_same_work(train):
    grouped, plain = train(*ONE_PROCESS), train(*ONE_PROCESS, "--length_grouping", "false")
    assert plain.description["order_hash"] != grouped.description["order_hash"]
    assert plain.description["workload"] != grouped.description["workload"]
    padding = [1 - run.column("real_tokens")[-1] / run.column("padded_tokens")[-1] for run in (grouped, plain)]
    assert padding[0] < padding[1] / 2


def test_clipping_left_to_deepspeed_would_be_seen(train):
    run = train("tests/scripts/unaided_clipping.py", "--num_gpus", "2", "--stages", "2")
    with pytest.raises(AssertionError):
        assert_same_computation(run, train(*ONE_PROCESS))
    # The recorded norm differs because the script measures it elsewhere; the weights show that clipping differs too.
    assert weight_difference(run, train(*ONE_PROCESS)) > 1e-5


@pytest.mark.parametrize("command", [("tests/scripts/groups_apart.py", "--num_gpus", "4", "--shard_group", "2")])
def test_groups_that_train_by_themselves_would_be_seen(command, train):
    """Two public reports of hybrid sharding saw a loss as if one group alone were training."""
    run = train(*command)
    with pytest.raises(AssertionError):
        assert_same_computation(run, train(*ONE_PROCESS))
    assert relative(run.column("grad_norm"), train(*ONE_PROCESS).column("grad_norm")) > 1e-2
    assert weight_difference(run, train(*ONE_PROCESS)) > 1e-5


def test_loss_scaling_left_to_deepspeed_would_be_seen(train):
    """DeepSpeed would clip by the norm of a gradient that is still scaled."""
    flags = (*SHORT, "--max_steps", "3", "--precision", "fp16")
    one = train(*ONE_PROCESS, *flags)
    run = train("tests/scripts/unaided_loss_scaling.py", "--num_gpus", "2", "--stage", "2", *flags)
    assert run.column("grad_norm")[0] == pytest.approx(2**16 * one.column("grad_norm")[0], rel=1e-3)
    assert relative(run.column("train_loss"), one.column("train_loss")) > 1e-3


@pytest.mark.parametrize("command", rows(*ROWS))
def test_noise_scale_is_the_same_from_every_engine(command, train):
    run, reference = train(*command), train(*ONE_PROCESS)
    for norms in ("micro_batch_squared_norm", "batch_squared_norm"):
        assert relative(run.column(norms), reference.column(norms)) < 2e-4
    scale = float(run.summary["noise_scale_samples"])
    assert scale == pytest.approx(float(reference.summary["noise_scale_samples"]), rel=1e-3)


@pytest.mark.parametrize("command", rows(*PIPELINES))
def test_a_pipeline_is_one(command, train):
    ranks = train(*command).description["ranks"]
    [whole] = train(*ONE_PROCESS).description["ranks"]
    for replica in {rank["replica"] for rank in ranks}:
        stages = sorted((rank for rank in ranks if rank["replica"] == replica), key=lambda rank: rank["stage"])
        layers = [name for stage in stages for name in stage["layers"]]
        has_two_pieces_a_stage = any(schedule in command for schedule in ("interleaved", "zero_bubble", "zbv"))
        assert sorted(layers) == sorted(whole["layers"])
        assert (layers == whole["layers"]) != has_two_pieces_a_stage
        assert sum(stage["parameters"] for stage in stages) == whole["parameters"]
        assert all(0 < stage["parameters"] < whole["parameters"] for stage in stages)
        assert all(any("encoder.layer" in name for name in stage["layers"]) for stage in stages)


@pytest.mark.parametrize("precision, row", [
    ("bf16", "pipeline x 2"), ("fp16", "pipeline x 2"), ("fp16", "torch zero_bubble x 2"), ("fp16", "ZeRO-0 x 2"),
    ("fp16", "ZeRO-2 x 2"), ("bf16", "ZeRO-3 x 2"), ("fp16", "HF Trainer x 2"),
    ("fp16", "HF Trainer ZeRO-2 x 2"), ("fp16", "FSDP x 2"), ("bf16", "FSDP x 2")])
def test_precision_means_the_same_arithmetic(precision, row, train):
    """The same products in the same type: losses are closer to each other than to fp32's by an order of magnitude."""
    one = train(*ONE_PROCESS, *SHORT, "--precision", precision)
    run = train(*ROWS[row], *SHORT, "--precision", precision)
    first_step = [each.column("train_loss")[0] for each in (run, one, train(*ONE_PROCESS))]
    assert abs(first_step[0] - first_step[1]) < 1e-6
    assert abs(first_step[1] - first_step[2]) > 1e-5
    assert relative(run.column("train_loss"), one.column("train_loss")) < 1e-3
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 3e-3


@pytest.mark.parametrize("row", ["pipeline x 2", "torch gpipe x 2", "ZeRO-3 x 2", "FSDP x 2"])
def test_parameters_in_bf16_begin_with_the_same_loss(row, train):
    """Later steps differ, as each strategy rounds sums of gradients in its own order: these are rows of their own."""
    flags = ("--precision", "bf16_native", "--max_steps", "1", "--max_eval_examples", "8")
    run, one = train(*ROWS[row], *flags), train(*ONE_PROCESS, *flags)
    assert relative(run.column("train_loss"), one.column("train_loss")) < 1e-6
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 3e-3
    assert run.summary["precision"] == "bf16_native"


def test_gathering_in_bf16_rounds_a_little_more(train):
    """A row of its own: further from autocast than the other strategies are, but no worse."""
    run = train(*ROWS["FSDP x 2"], *SHORT, "--precision", "bf16", "--gather_precision", "bf16")
    one = train(*ONE_PROCESS, *SHORT, "--precision", "bf16")
    assert 1e-6 < relative(run.column("train_loss"), one.column("train_loss")) < 2e-3
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 5e-3
    assert run.summary["strategy"] == "fsdp_bf16_gather"


@pytest.mark.parametrize("command", rows("one process", *ROWS))
def test_saved_model_is_the_trained_one(command, train):
    """Loaded by `from_pretrained`, the model scores every evaluation window as the run did after its last step."""
    from transformers import BertForQuestionAnswering

    from workload.arguments import Arguments, parse_arguments
    from workload.tasks.squad_v2 import SquadV2

    run = train(*command)
    model = BertForQuestionAnswering.from_pretrained(run.folder / "model").eval()
    task = SquadV2(parse_arguments(Arguments, ["--sample", "--model", str(run.folder / "model"), "--max_eval_examples",
                                               "50", "--max_train_examples", "1", "--max_seq_length", "128"]))
    task.load()
    features = task.features["validation"]
    inputs, labels = task.collate(features.with_format("arrow")[:], length=128)
    with torch.no_grad():
        logits = task.logits(model, inputs)
    assert float(task.loss(logits, labels).mean()) == pytest.approx(float(run.summary["validation_loss"]), rel=1e-5)
    scores, answers = task.score(dict(enumerate(logits.numpy())))
    assert answers == json.loads((run.folder / "predictions.json").read_text())
    assert scores["f1"] == pytest.approx(float(run.summary["f1"]))
    assert not list((run.folder / "model").glob("*.bin"))


@pytest.mark.parametrize("command", rows(*ROWS))
def test_no_stray_output(command, train):
    """A run prints its bars and one closing line, and none of the libraries' chatter."""
    assert not stray_lines(train(*command).output)

"""The proof that comes before any timing: every strategy computes what one process computes."""

import json

import pytest
import torch

from tests.conftest import stray_lines

ONE_PROCESS = ("bert_baseline.py", "--num_gpus", "1")
# strategy, processes, stages
ROWS = {
    "DDP x 2": ("bert_baseline.py", "--num_gpus", "2"),
    "pipeline x 1": ("pipeline.py", "--num_gpus", "1", "--stages", "1", "--micro_batches", "8"),
    "pipeline x 2": ("pipeline.py", "--num_gpus", "2", "--stages", "2"),
    "pipeline x 4": ("pipeline.py", "--num_gpus", "4", "--stages", "4", "--micro_batches", "8"),
    "pipeline 2 x 2": ("pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch 1f1b x 1": ("torch_pipeline.py", "--num_gpus", "1", "--stages", "1", "--micro_batches", "8"),
    "torch gpipe x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "gpipe"),
    "torch 1f1b x 4": ("torch_pipeline.py", "--num_gpus", "4", "--schedule", "1f1b", "--micro_batches", "8"),
    "torch 1f1b 2 x 2": ("torch_pipeline.py", "--num_gpus", "4", "--stages", "2", "--micro_batches", "4"),
    "torch interleaved x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "interleaved"),
    "torch zero_bubble x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zero_bubble"),
    "torch zbv x 2": ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zbv"),
    "ZeRO-3 x 1": ("zero.py", "--num_gpus", "1", "--stage", "3"),
    "ZeRO-0 x 2": ("zero.py", "--num_gpus", "2", "--stage", "0"),
    "ZeRO-1 x 2": ("zero.py", "--num_gpus", "2", "--stage", "1"),
    "ZeRO-2 x 2": ("zero.py", "--num_gpus", "2", "--stage", "2"),
    "ZeRO-3 x 2": ("zero.py", "--num_gpus", "2", "--stage", "3"),
    "ZeRO-3 x 4": ("zero.py", "--num_gpus", "4", "--stage", "3"),
    "ZeRO-3 x 2 offload": ("zero.py", "--num_gpus", "2", "--stage", "3", "--offload"),
    "HF Trainer x 1": ("hf_trainer.py", "--num_gpus", "1"),
    "HF Trainer x 2": ("hf_trainer.py", "--num_gpus", "2"),
    "HF Trainer ZeRO-2 x 2": ("hf_trainer.py", "--num_gpus", "2", "--deepspeed_config", "experiments/zero2.json"),
    "FSDP x 2 compiled": ("fsdp.py", "--num_gpus", "2", "--compile"),
    "FSDP x 1": ("fsdp.py", "--num_gpus", "1"),
    "FSDP x 2": ("fsdp.py", "--num_gpus", "2"),
    "FSDP no reshard x 2": ("fsdp.py", "--num_gpus", "2", "--reshard_after_forward", "false"),
    "FSDP x 4": ("fsdp.py", "--num_gpus", "4"),
    "DataParallel x 1": ("data_parallel.py", "--num_gpus", "1"),
}
SHORT = ("--max_steps", "2", "--max_eval_examples", "8")  # short types are slow on a CPU
PIPELINES = [row for row, command in ROWS.items() if "pipeline" in command[0] and "x 1" not in row]


def relative(value: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(value, expected, strict=True))


def weight_difference(run, reference) -> float:
    """Norm of the difference of all weights, in units of the reference's norm."""
    weights, expected = run.weights(), reference.weights()
    assert weights.keys() == expected.keys()
    difference = torch.stack([(weights[name] - expected[name]).norm() for name in expected]).norm()
    return float(difference / torch.stack([weight.norm() for weight in expected.values()]).norm())


def assert_same_computation(run, reference) -> None:
    assert relative(run.column("train_loss"), reference.column("train_loss")) < 1e-5
    assert relative(run.column("grad_norm"), reference.column("grad_norm")) < 1e-4
    assert weight_difference(run, reference) < 1e-5
    assert run.description["order_hash"] == reference.description["order_hash"]
    validation = [float(each.summary["validation_loss"]) for each in (run, reference)]
    assert relative(validation[:1], validation[1:]) < 1e-5


@pytest.mark.parametrize("row", ROWS)
def test_strategy_computes_what_one_process_computes(row, train):
    assert_same_computation(train(*ROWS[row]), train(*ONE_PROCESS))


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
    run = train("tests/unaided_clipping.py", "--num_gpus", "2", "--stages", "2")
    with pytest.raises(AssertionError):
        assert_same_computation(run, train(*ONE_PROCESS))
    # Not by the norm alone, which the mutation measures elsewhere: it trains other weights.
    assert weight_difference(run, train(*ONE_PROCESS)) > 1e-5


def test_loss_scaling_left_to_deepspeed_would_be_seen(train):
    """It clips by the norm of a gradient that is still scaled."""
    flags = (*SHORT, "--max_steps", "3", "--precision", "fp16")
    one = train(*ONE_PROCESS, *flags)
    run = train("tests/unaided_loss_scaling.py", "--num_gpus", "2", "--stage", "2", *flags)
    assert run.column("grad_norm")[0] == pytest.approx(2**16 * one.column("grad_norm")[0], rel=1e-3)
    assert relative(run.column("train_loss"), one.column("train_loss")) > 1e-3


def test_noise_scale_is_the_same_from_every_engine(train):
    reference = train(*ONE_PROCESS)
    for row in ROWS.values():
        for norms in ("micro_batch_squared_norm", "batch_squared_norm"):
            assert relative(train(*row).column(norms), reference.column(norms)) < 2e-4
        scale = float(train(*row).summary["noise_scale_samples"])
        assert scale == pytest.approx(float(reference.summary["noise_scale_samples"]), rel=1e-3)


@pytest.mark.parametrize("row", PIPELINES)
def test_a_pipeline_is_one(row, train):
    ranks = train(*ROWS[row]).description["ranks"]
    [whole] = train(*ONE_PROCESS).description["ranks"]
    for replica in {rank["replica"] for rank in ranks}:
        stages = sorted((rank for rank in ranks if rank["replica"] == replica), key=lambda rank: rank["stage"])
        layers = [name for stage in stages for name in stage["layers"]]
        has_two_pieces_a_stage = any(schedule in row for schedule in ("interleaved", "zero_bubble", "zbv"))
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
    """Nearer to each other than to fp32 by an order of magnitude: the same products in the same type."""
    one = train(*ONE_PROCESS, *SHORT, "--precision", precision)
    run = train(*ROWS[row], *SHORT, "--precision", precision)
    first_step = [each.column("train_loss")[0] for each in (run, one, train(*ONE_PROCESS))]
    assert abs(first_step[0] - first_step[1]) < 1e-6
    assert abs(first_step[1] - first_step[2]) > 1e-5
    assert relative(run.column("train_loss"), one.column("train_loss")) < 1e-3
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 3e-3


@pytest.mark.parametrize("row", ["pipeline x 2", "torch gpipe x 2", "ZeRO-3 x 2", "FSDP x 2"])
def test_parameters_in_bf16_begin_with_the_same_loss(row, train):
    """And then differ, for sums of gradients are rounded in each strategy's own order: rows of their own."""
    flags = ("--precision", "bf16_native", "--max_steps", "1", "--max_eval_examples", "8")
    run, one = train(*ROWS[row], *flags), train(*ONE_PROCESS, *flags)
    assert relative(run.column("train_loss"), one.column("train_loss")) < 1e-6
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 3e-3
    assert run.summary["precision"] == "bf16_native"


def test_gathering_in_bf16_rounds_a_little_more(train):
    """Its own row, for it is not what the others compute: further from autocast than they are, but no worse."""
    run = train(*ROWS["FSDP x 2"], *SHORT, "--precision", "bf16", "--gather_precision", "bf16")
    one = train(*ONE_PROCESS, *SHORT, "--precision", "bf16")
    assert 1e-6 < relative(run.column("train_loss"), one.column("train_loss")) < 2e-3
    assert relative(run.column("grad_norm"), one.column("grad_norm")) < 5e-3
    assert run.summary["strategy"] == "fsdp_bf16_gather"


@pytest.mark.parametrize("row", ["one process", *ROWS])
def test_saved_model_is_the_trained_one(row, train, monkeypatch):
    """Loaded by `from_pretrained`, it scores every evaluation window as the run itself did after its last step."""
    from transformers import BertForQuestionAnswering

    from workload.arguments import Arguments, parse_arguments
    from workload.tasks.squad_v2 import SquadV2

    run = train(*ROWS.get(row, ONE_PROCESS))
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


def test_no_stray_output(train):
    """What is printed is worth reading: bars and one closing line, none of the libraries' chatter."""
    for row in ROWS.values():
        assert not stray_lines(train(*row).output)

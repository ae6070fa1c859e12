"""`--activation_checkpointing` computes what a run without it computes, bit for bit, and keeps less."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForQuestionAnswering

from benchmarks.kept_activations import kept_bytes
from tests.shared.runs import ONE_PROCESS, ROWS, SHORT, weight_difference
from workload.arguments import TorchPipelineArguments, parse_arguments
from workload.errors import InputError
from workload.models.dropout import pack_dropout
from workload.models.flops import TransformerShape
from workload.models.recomputation import recompute_layers

BATCH, LENGTH, HIDDEN = 3, 24, 32


def small_bert(layers: int) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(vocab_size=60, hidden_size=HIDDEN, num_hidden_layers=layers,
                                                num_attention_heads=2, intermediate_size=64))
    pack_dropout(model)
    return model.train()


def test_a_layer_keeps_its_input_only():
    tokens = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    without, with_it = [kept_bytes(small_bert(layers), tokens) for layers in (2, 3)], []
    for layers in (2, 3):
        model = small_bert(layers)
        recompute_layers(model, "small")
        with_it.append(kept_bytes(model, tokens))
    assert with_it[1] - with_it[0] == BATCH * LENGTH * HIDDEN * 4
    assert without[1] - without[0] > 10 * BATCH * LENGTH * HIDDEN * 4


def test_a_family_whose_layers_cannot_be_computed_again_is_refused():
    config = AutoConfig.for_model("albert", hidden_size=HIDDEN, embedding_size=HIDDEN, num_attention_heads=2,
                                  intermediate_size=64, vocab_size=60)
    with pytest.raises(InputError, match="--activation_checkpointing: .*--model mine.*'albert'; leave it out"):
        recompute_layers(AutoModelForSequenceClassification.from_config(config), "mine")


@pytest.mark.parametrize("schedule", ["zero_bubble", "zbv"])
def test_a_backward_pass_in_parts_is_refused(schedule):
    with pytest.raises(InputError, match=f"--schedule {schedule} splits the backward pass.*use --schedule interleaved"):
        parse_arguments(TorchPipelineArguments, ["--sample", "--model", "tiny", "--activation_checkpointing",
                                                 "--schedule", schedule])


def test_the_forward_pass_of_each_layer_counts_twice():
    shape, lengths = TransformerShape(layers=2, hidden=8, intermediate=32, outputs=2), np.array([16])
    forward_of_layers = TransformerShape(2, 8, 32, outputs=0).training_flops(lengths) / 3
    assert shape.training_flops(lengths, recomputed=True) == shape.training_flops(lengths) + forward_of_layers


@pytest.mark.parametrize("command, flags", [
    pytest.param(({"one process": ONE_PROCESS} | ROWS)[row], flags, id=f"{row} {' '.join(flags)}") for row, flags in [
        ("one process", ("--task", "imdb", "--max_seq_length", "40")), ("DDP x 2", ("--precision", "bf16")),
        ("ZeRO-3 x 2", ("--precision", "bf16")), ("FSDP x 2", ("--precision", "bf16")),
        ("pipeline x 2", ("--precision", "bf16")), ("torch interleaved x 2", ("--precision", "bf16")),
        ("tensor x 2", ()), ("tensor sequence x 2", ("--precision", "bf16")),
        ("tensor sequence FSDP 2 x 2", ("--task", "oscar", "--max_seq_length", "64")),
        ("pipeline 2 x 2", ("--task", "oscar", "--max_seq_length", "64"))]])
def test_bit_for_bit_with_dropout(command, flags, train):
    flags = (*flags, *SHORT, "--max_steps", "3", "--dropout", "0.1")
    plain, run = train(*command, *flags), train(*command, *flags, "--activation_checkpointing")
    for column in ("train_loss", "grad_norm", "micro_batch_squared_norm", "batch_squared_norm"):
        assert run.column(column) == plain.column(column)
    assert weight_difference(run, plain) == 0
    assert run.summary["strategy"] == plain.summary["strategy"] + "_recompute"
    assert run.summary["workload"] == plain.summary["workload"], "a row of the same table"

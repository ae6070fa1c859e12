"""What autograd keeps of BERT-base's forward pass, with and without --activation_checkpointing, and what that costs.

    python -m benchmarks.kept_activations

First the bytes, which are exact, then the seconds of forward and backward passes with and without it, in turn.

Layers are alike, so models of one and of two layers give what a layer adds, and what both ends of the model keep. With
a dropout of 0.1, on this machine's CPU; a GPU's attention keeps no scores.
"""

import contextlib
import statistics
import time

import torch
from transformers import BertConfig, BertForQuestionAnswering

from workload.models.dropout import pack_dropout
from workload.models.recomputation import recompute_layers

LENGTH, LAYERS, MIB = 384, 12, 2**20
SAMPLES, REPEATS = 4, 5  # of what is timed


def kept_bytes(model: torch.nn.Module, tokens: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and their casts aside.

    Args:
        tokens: (batch, length)
        dtype: of autocast; None for fp32 throughout.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {frozenset(parameter.shape) for parameter in model.parameters() if parameter.ndim > 1}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_cast = tensor.dtype == dtype and tensor.ndim == 2 and frozenset(tensor.shape) in shapes  # or its transpose
        if storage.data_ptr() not in weights and not is_cast:
            kept[storage.data_ptr()] = storage
        return tensor

    precision = torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        output = model(tokens)
    size = sum(storage.nbytes() for storage in kept.values())
    del output  # until here it holds on to what is kept
    return size


def seconds(dtype: torch.dtype | None) -> dict[bool, list[float]]:
    """Of a forward and backward pass, without (False) and with (True) activation checkpointing."""
    models = {recomputes: BertForQuestionAnswering(BertConfig(num_hidden_layers=LAYERS)).train()
              for recomputes in (False, True)}
    recompute_layers(models[True], "BERT-base")
    precision = torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()
    tokens, taken = torch.ones(SAMPLES, LENGTH, dtype=torch.int64), {False: [], True: []}
    for model in models.values():
        pack_dropout(model)
    for _ in range(1 + REPEATS):
        for recomputes, model in models.items():
            began = time.perf_counter()
            with precision:
                loss = model(tokens).start_logits.float().mean()
            loss.backward()
            taken[recomputes].append(time.perf_counter() - began)
            model.zero_grad(set_to_none=False)
    return {recomputes: values[1:] for recomputes, values in taken.items()}  # the first warms up


def main() -> None:
    tokens = torch.ones(1, LENGTH, dtype=torch.int64)
    print(f"MiB a sample of {LENGTH} tokens, {LAYERS} layers")
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        found = {}
        for recomputes in (False, True):
            for layers in (1, 2):
                model = BertForQuestionAnswering(BertConfig(num_hidden_layers=layers)).train()
                pack_dropout(model)
                if recomputes:
                    recompute_layers(model, "BERT-base")
                found[recomputes, layers] = kept_bytes(model, tokens, dtype) / MIB
        a_layer = {recomputes: found[recomputes, 2] - found[recomputes, 1] for recomputes in (False, True)}
        kept = {recomputes: found[recomputes, 1] + (LAYERS - 1) * a_layer[recomputes] for recomputes in (False, True)}
        print(f"{name}: a layer {a_layer[False]:.1f}, all {kept[False]:.0f}; with --activation_checkpointing a layer "
              f"{a_layer[True]:.2f}, all {kept[True]:.0f}, and while a layer is computed again "
              f"{kept[True] + a_layer[False]:.0f}")
    print(f"seconds of {SAMPLES} samples, {torch.get_num_threads()} threads: without, with, and their ratios")
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        taken = seconds(dtype)
        ratios = [again / kept for kept, again in zip(*taken.values(), strict=True)]
        print(f"{name}: {statistics.median(taken[False]):.2f}, {statistics.median(taken[True]):.2f}; median "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

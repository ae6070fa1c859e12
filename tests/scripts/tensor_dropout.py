"""Dropout under tensor parallelism, on every rank of one tensor group; the last argument is the file for the outcome.

    tensor_dropout.py [--sequence_parallel] outcome.json

The loss of one batch is drawn many times by the whole model and by the model that is shared out. Of one forward pass
the masks are kept, under the names of the modules that draw them.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import BertConfig, BertForQuestionAnswering

import tensor_parallel
from workload.launch import launcher
from workload.launch.processes import join, leave
from workload.models import dropout
from workload.models.layers import tensor_plan, transformer_modules
from workload.models.replicated_dropout import ReplicatedDropout
from workload.tensor_shards import TENSOR

DRAWS, SEED = 300, 7


def main() -> None:
    shares_tokens, path = "--sequence_parallel" in sys.argv, Path(sys.argv[-1])
    processes = join(launcher.processes(), cpu_threads=1)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
                        max_position_embeddings=16, initializer_range=0.3)
    model = BertForQuestionAnswering(config)
    dropout.pack_dropout(model)
    tokens = torch.randint(0, 50, (4, 16))

    def losses() -> list[float]:
        torch.manual_seed(SEED + processes.rank)
        with torch.no_grad():
            return [float(model(input_ids=tokens).start_logits.log_softmax(-1)[:, 3].mean()) for _ in range(DRAWS)]

    whole = losses()
    layers, plan = transformer_modules(model), tensor_plan(model)
    group = init_device_mesh("cpu", (processes.count,), mesh_dim_names=(TENSOR,))
    tensor_parallel.share_out(list(layers.values()), plan, group, shares_tokens)
    generator = ReplicatedDropout(processes.device, SEED + processes.count)
    generator.attach(plan.replicated_dropouts(model, layers, shares_tokens))
    shared_out = losses()
    masks = masks_of_a_forward_pass(model, tokens)
    everywhere = [None] * processes.count
    dist.all_gather_object(everywhere, masks)
    if processes.is_main:
        path.write_text(json.dumps({"whole": whole, "shared out": shared_out, "masks": everywhere}))
    leave()


def masks_of_a_forward_pass(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, list[float]]:
    """What each module draws: its name -> 1 for each value that is kept."""
    masks, draw, within = {}, dropout.draw_kept, []

    def kept(like: torch.Tensor, probability: float) -> tuple[torch.Tensor, float]:
        mask, scale = draw(like, probability)
        masks[within[-1]] = mask.flatten().tolist()
        return mask, scale

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, __, name=name: within.append(name))
        module.register_forward_hook(lambda *_: within.pop() and None)
    dropout.draw_kept = kept
    with torch.no_grad():
        model(input_ids=tokens)
    return masks


if __name__ == "__main__":
    main()

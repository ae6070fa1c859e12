"""`bert_baseline.py` whose third loss asks for more memory than there is."""

import torch

import bert_baseline
from workload.errors import one_line_errors
from workload.tasks.squad_v2 import SquadV2

loss, calls = SquadV2.loss, []


def greedy_loss(self, logits: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
    calls.append(torch.empty(2**50 if len(calls) == 2 else 1))
    return loss(self, logits, labels)


SquadV2.loss = greedy_loss

if __name__ == "__main__":
    with one_line_errors():
        bert_baseline.main()

"""PyTorch's schedules: the idle time of each, measured and by a replay, and the settings that are refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.pipelining.schedules import get_schedule_class

from measurement.pipelines.idle_replay import Action, mean_seconds, replayed_bubble_pct
from measurement.pipelines.spans import Span
from measurement.pipelines.torch_timeline import actions_of
from tests.shared.runs import SAMPLE
from workload.arguments import TorchPipelineArguments, parse_arguments
from workload.errors import InputError
from workload.job import prepare
from workload.models.layers import ordered_layers
from workload.pipelines.dealing import TORCH_NAMES, can_run
from workload.pipelines.pieces import cut
from workload.pipelines.schedules import PipelinePlan, plan_pipeline

EQUAL = {"forward": 1, "backward": 1, "weight": 1}


def one_forward_one_backward(stages: int, micro_batches: int) -> list[list[Action]]:
    """By hand: stage s begins with p - s forward passes; then backward and forward take turns."""
    actions = []
    for stage in range(stages):
        forward = [Action("forward", stage, number) for number in range(micro_batches)]
        backward = [Action("backward", stage, number) for number in range(micro_batches)]
        ahead = stages - stage
        turns = [action for pair in zip(backward, forward[ahead:], strict=False) for action in pair]
        actions.append(forward[:ahead] + turns + backward[micro_batches - ahead:])
    return actions


def torch_actions(name: str, stages: int, micro_batches: int) -> list[list[Action]]:
    plan = PipelinePlan(name, *TORCH_NAMES[name], stages, micro_batches)
    pieces = [SimpleNamespace(group_size=stages, group_rank=0, num_stages=plan.pieces, stage_index=piece, submod=None)
              for piece in plan.pieces_of(0)]
    return actions_of(get_schedule_class(plan.torch_name)(pieces, micro_batches))


@pytest.mark.parametrize("stages, micro_batches", [(1, 3), (2, 4), (4, 8), (4, 16)])
@pytest.mark.parametrize("seconds", [{"forward": 1, "backward": 1}, {"forward": 1, "backward": 2}])
def test_replay_of_1f1b_gives_the_formula(stages, micro_batches, seconds):
    replayed = replayed_bubble_pct(one_forward_one_backward(stages, micro_batches), seconds)
    assert replayed == pytest.approx(100 * (stages - 1) / (micro_batches + stages - 1))


@pytest.mark.parametrize("stages, micro_batches", [(2, 4), (4, 8), (4, 16)])
def test_replay_of_the_other_schedules(stages, micro_batches):
    """With v = 2 pieces a device the interleaved bubble is (p-1)/(vm+p-1): Narayanan et al. 2021, section 2.2."""
    seconds = {"forward": 1, "backward": 2}
    interleaved = replayed_bubble_pct(torch_actions("interleaved", stages, micro_batches), seconds)
    assert interleaved == pytest.approx(100 * (stages - 1) / (2 * micro_batches + stages - 1))
    zero_bubble = replayed_bubble_pct(torch_actions("zero_bubble", stages, micro_batches), EQUAL)
    # A V has only its ends idle where all three passes take as long: p-1 units of 6m (Qi et al. 2024, section 6).
    zbv = replayed_bubble_pct(torch_actions("zbv", stages, micro_batches), EQUAL)
    assert zbv == pytest.approx(100 * (stages - 1) / (6 * micro_batches + stages - 1))
    assert zbv <= zero_bubble < interleaved


def test_a_replay_that_cannot_go_on_says_so():
    with pytest.raises(ValueError, match="wait for each other"):
        replayed_bubble_pct([[Action("backward", 0, 0), Action("forward", 0, 0)]], EQUAL)


def test_mean_seconds_of_an_action():
    actions = [[Action("forward", 0, 0), Action("backward", 0, 0), Action("weight", 0, 0)]]
    spans = [Span(replica, 0, kind, 0, 0, seconds) for replica in (0, 1)
             for kind, seconds in (("forward", 1), ("backward", 2 + 2 * replica), ("weight", 4), ("optimizer", 9))]
    assert mean_seconds(actions, [spans]) == {"forward": 1, "backward": 3, "weight": 4}
    twice = [*spans, *(Span(0, 0, kind, 0, 0, 0) for kind in EQUAL), *(Span(1, 0, kind, 0, 0, 0) for kind in EQUAL)]
    assert mean_seconds(actions, [twice, []]) == {"forward": 0.5, "backward": 1.5, "weight": 2}


@pytest.mark.alone
def test_bubbles_of_schedules_that_sleep(start_ranks):
    output = start_ranks("tests/scripts/sleeping_torch_stages.py", 4, count=2, check=True).stdout
    measured = json.loads(output.strip().splitlines()[-1])
    assert list(measured) == list(TORCH_NAMES)
    bubbles = {name: found["bubble_pct"] for name, found in measured.items()}
    assert bubbles == pytest.approx({name: found["bubble_schedule_pct"] for name, found in measured.items()}, abs=5)
    for name in ("zero_bubble", "zbv"):
        assert bubbles[name] < bubbles["1f1b"] - 3


@pytest.mark.parametrize("name", ["interleaved", "zero_bubble", "zbv"])
def test_what_can_run_is_what_pytorch_takes(name):
    for stages in (1, 2, 3, 4):
        for micro_batches in range(1, 14):
            if can_run(name, stages, micro_batches):
                actions = torch_actions(name, stages, micro_batches)
                assert 0 <= replayed_bubble_pct(actions, EQUAL) < 100
            else:
                with pytest.raises(ValueError):
                    torch_actions(name, stages, micro_batches)


def refusal(*flags: str, devices: int) -> str:
    with pytest.raises(InputError) as caught:
        arguments = parse_arguments(TorchPipelineArguments, [*SAMPLE, *flags])
        plan = plan_pipeline(arguments, devices)
        prepare("torch_pipeline", arguments, devices, plan.stages, plan.micro_batches, plan.name, plan.pieces_a_device)
        raise AssertionError("was not refused")
    return str(caught.value)


@pytest.mark.parametrize("flags, devices, words", [
    (["--schedule", "2f2b"], 2, ["--schedule", "2f2b", "zero_bubble"]),
    (["--schedule", "zbv"], 4, ["--stages 4", "every stage needs 2", "use at most 2"]),
    (["--schedule", "interleaved", "--stages", "8"], 8, ["--stages 8", "use at most 2"]),
    (["--schedule", "1f1b", "--stages", "8"], 8, ["--stages 8", "needs one", "use at most 4"]),
    (["--schedule", "1f1b", "--micro_batches", "2"], 4, ["--schedule 1f1b", "fewer than 4 stages", "use 8 or"]),
    (["--schedule", "zero_bubble", "--micro_batches", "5", "--global_batch_size", "40"], 2, ["2 equal rounds", "40"]),
    (["--schedule", "1f1b", "--global_batch_size", "3"], 4, ["--schedule 1f1b", "use another --global_batch_size"]),
    (["--deepspeed_config", "ds_config.json"], 2, ["unknown flag --deepspeed_config"]),
])
def test_wrong_schedules_get_one_line(flags, devices, words):
    line = refusal(*flags, devices=devices)
    assert all(word in line for word in words), line
    assert "\n" not in line


@pytest.mark.parametrize("schedule, devices, batch, expected", [
    ("1f1b", 4, 64, 16), ("1f1b", 4, 17, 17), ("interleaved", 2, 7, 1), ("interleaved", 2, 10, 2), ("gpipe", 2, 7, 7),
])
def test_default_micro_batches_suit_the_schedule(schedule, devices, batch, expected):
    arguments = parse_arguments(TorchPipelineArguments, ["--schedule", schedule, "--global_batch_size", str(batch)])
    assert plan_pipeline(arguments, devices).micro_batches == expected


def test_layers_are_cut_evenly_and_dealt_out():
    from workload.tasks.squad_v2 import SquadV2
    layers = ordered_layers(SquadV2(parse_arguments(TorchPipelineArguments, SAMPLE)).build_model())
    assert [list(piece) for piece in cut(layers, 2)] == [list(layers)[:3], list(layers)[3:]]
    assert [len(piece) for piece in cut(layers, 4)] == [2, 1, 1, 2]
    # Three pieces of four layers: the two go where there are no embeddings besides.
    assert [len(piece) for piece in cut(layers, 3)] == [2, 2, 2]
    dealt = {name: [PipelinePlan(name, *names, 2, 4).pieces_of(stage) for stage in (0, 1)]
             for name, names in TORCH_NAMES.items()}
    assert dealt["1f1b"] == [[0], [1]]
    assert dealt["zero_bubble"] == [[0, 2], [1, 3]]
    assert dealt["zbv"] == [[0, 3], [1, 2]]


def test_a_large_head_makes_up_for_layers():
    """GPT-2 small's output costs as much as 5.4 layers: with as many layers each the last of 4 stages took 8.4."""
    from transformers import GPT2Config, GPT2LMHeadModel
    with torch.device("meta"):
        layers = ordered_layers(GPT2LMHeadModel(GPT2Config()))
    def layers_a_piece(pieces: int) -> list[int]:
        return [sum(".h." in name for name in piece) for piece in cut(layers, pieces)]

    assert layers_a_piece(4) == [4, 4, 4, 0]
    assert layers_a_piece(2) == [9, 3]
    assert [name for piece in cut(layers, 8) for name in piece] == list(layers)

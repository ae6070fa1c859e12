"""Predictions by hand: the event model, and recipes whose step time has a closed form."""

import itertools
import subprocess
import sys

import pytest

from measurement.pipelines.idle_replay import Action
from prediction import memory, recipes
from prediction.costs import FP32, Batch, Costs, Layer, PassCost, wire_bytes
from prediction.events import Issued, simulate
from prediction.links import LinkCost, Links
from prediction.pipelines import pipeline
from prediction.schedules import ORDERS, gpipe, one_forward_one_backward
from prediction.setting import Setting, setting_of
from tests.shared.calibrations import FREE, OPERATIONS
from tests.shared.runs import ROOT
from workload.pipelines.dealing import TORCH_NAMES, can_run

LAYERS = [Layer("embedding", (4_000_000,)), *[Layer("layer", (1_000_000, 500_000))] * 6, Layer("head", (1000,))]
PARAMETERS = 4_000_000 + 6 * 1_500_000 + 1000
BATCH = Batch(4, 8, 64)


def costs(link: LinkCost = FREE, passes: float = 1.0, slowdown: float = 1.0, scatters: bool = True,
          update: float = 0.0) -> Costs:
    """Forward takes 1 second a layer, backward 2 (its halves 1 each), an embedding and a head nothing."""
    kinds = {"forward": 1, "backward": 2, "inputs": 1, "weights": 1}
    table = {layer: {kind: PassCost(0, passes * seconds * (layer == "layer"), 0, 0) for kind, seconds in kinds.items()}
             for layer in ("embedding", "layer", "head")}
    return Costs(table, update, Links({(name, n): link for name in OPERATIONS for n in (2, 4, 8)}), slowdown, scatters)


# ---------------------------------------------------------------- events

def test_work_waits_for_its_stream_and_for_what_it_needs():
    step = Issued()
    first = step.compute("forward", 2)
    sent = step.communicate("send/receive", 3, first, devices=(0, 1))
    meanwhile, other = step.compute("forward", 4), step.compute("forward", 1, sent, device=1)
    assert simulate(step.work) == 6
    assert [(work.start, work.end) for work in (first, sent, meanwhile, other)] == [(0, 2), (2, 5), (2, 6), (5, 6)]


@pytest.mark.parametrize("compute, communicate", [(4, 2), (2, 4), (3, 3)])
def test_both_at_once_take_longer(compute, communicate):
    step = Issued()
    step.compute("backward", compute)
    step.communicate("all-reduce", communicate)
    assert simulate(step.work, slowdown=1.5) == pytest.approx(max(compute, communicate)
                                                              + 0.5 * min(compute, communicate))


def test_work_in_an_impossible_order_is_an_error():
    step = Issued()
    late = step.compute("forward", 1)
    late.after = (step.compute("forward", 1),)
    with pytest.raises(ValueError, match="waits for itself"):
        simulate(step.work)


# ---------------------------------------------------------------- costs

def test_a_pass_has_a_floor():
    cost = PassCost(floor=0.5, a=0.1, b=0.001, c=1e-5)
    assert cost.seconds(Batch(1, 1, 8)) == 0.5
    assert cost.seconds(Batch(1, 4, 500)) == pytest.approx(0.1 + 2 + 10)


@pytest.mark.parametrize("operation, expected", [("all-reduce", 150), ("all-gather", 75), ("reduce-scatter", 75),
                                                 ("send/receive", 100)])
def test_bytes_on_a_link_of_four(operation, expected):
    assert wire_bytes(operation, 100, 4) == expected


def test_gloo_reduces_all_where_others_scatter():
    link = LinkCost(1.0, 100.0)
    assert costs(link).exchanged("reduce-scatter", 400, 4) == (1 + 3, 300)
    assert costs(link, scatters=False).exchanged("reduce-scatter", 400, 4) == (1 + 6, 600)
    assert costs(link).exchanged("all-reduce", 400, 1) == (0, 0)


# ---------------------------------------------------------------- recipes

ONE_COPY = {
    "ddp": lambda *given: recipes.ddp(*given), "zero 1": lambda *given: recipes.zero(*given, stage=1),
    "zero 2": lambda *given: recipes.zero(*given, stage=2), "zero 3": lambda *given: recipes.zero(*given, stage=3),
    "zero 0": lambda *given: recipes.zero(*given, stage=0),
    "fsdp": lambda *given: recipes.fsdp(*given), "fsdp no reshard": lambda *given: recipes.fsdp(*given, reshards=False)}


@pytest.mark.parametrize("recipe", ONE_COPY.values(), ids=ONE_COPY)
def test_one_device_only_computes(recipe):
    """4 micro-batches through 6 layers of 1 + 2 seconds, and the update."""
    work = recipe(LAYERS, BATCH, costs(update=1e-6), 1)
    assert simulate(work) == pytest.approx(4 * 6 * 3 + 1e-6 * PARAMETERS)
    assert sum(each.bytes for each in work) == 0


@pytest.mark.parametrize("recipe", ONE_COPY.values(), ids=ONE_COPY)
def test_free_links_cost_nothing(recipe):
    assert simulate(recipe(LAYERS, BATCH, costs(), 4)) == pytest.approx(4 * 6 * 3)


def sent(work) -> float:
    return sum(each.bytes for each in work)


# In multiples of the model's bytes times (n - 1)/n: the table in docs/strategies.md.
@pytest.mark.parametrize("name, scatters, multiple", [
    ("ddp", True, 2), ("zero 0", True, 2), ("zero 1", True, 3), ("zero 2", True, 9), ("zero 3", True, 8),
    ("zero 3", False, 12), ("fsdp no reshard", True, 2), ("fsdp no reshard", False, 3)])
def test_bytes_of_a_step(name, scatters, multiple):
    work = ONE_COPY[name](LAYERS, BATCH, costs(scatters=scatters), 4)
    assert sent(work) == pytest.approx(multiple * FP32 * PARAMETERS * 3 / 4)


def test_fsdp_gathers_layers_twice_a_micro_batch_and_the_rest_once():
    layers, rest = 6 * 1_500_000, 4_001_000
    work = recipes.fsdp(LAYERS, BATCH, costs(), 4)
    assert sent(work) == pytest.approx(FP32 * 3 / 4 * (PARAMETERS + 4 * (2 * layers + rest)))


def test_links_that_are_all_there_is():
    """No computation: a step is its bytes through one link, one after the other."""
    link = LinkCost(0.0, 1e9)
    for name, recipe in ONE_COPY.items():
        work = recipe(LAYERS, BATCH, costs(link, passes=0.0), 4)
        assert simulate(work) == pytest.approx(sent(work) / 1e9), name


def test_ddp_hides_all_but_its_last_bucket():
    """Buckets of 25 MiB or more are sent while earlier layers go backward; the embedding's has nothing to hide it."""
    link = LinkCost(0.0, 1e9)
    work = recipes.ddp(LAYERS, BATCH, costs(link), 4)
    seconds = simulate(work)
    *hidden, last = [each for each in work if each.kind == "all-reduce"]
    backward = max(each.end for each in work if each.kind == "backward")
    assert hidden and all(each.end < backward for each in hidden)
    assert last.start == backward and last.bytes >= 1.5 * LAYERS[0].bytes
    assert seconds == pytest.approx(4 * 6 * 3 + last.bytes / 1e9)


def test_tensor_parallel_hides_nothing():
    link, size = LinkCost(0.5, 1e30), 2 * BATCH.tokens * 384 * 4
    work = recipes.tensor_parallel(recipes.shared_out(LAYERS, 4), BATCH, costs(link), 4, 1, hidden=384, value_bytes=4)
    assert simulate(work) == pytest.approx(4 * (6 * 3 + 4 * 6 * 0.5)), "what is not proportional to tokens stays"
    assert sent(work) == pytest.approx(4 * 2 * 6 * wire_bytes("all-reduce", size, 4))


def test_tensor_parallel_shares_out_products():
    passes = {kind: {name: PassCost(0, 0.25, 1.0, 0) for name in ("forward", "backward")} for kind in ("layer",)}
    shared = recipes.shared_out(LAYERS[1:2], 4)
    given = Costs(passes, 0.0, Links({}))
    assert given.pass_s(LAYERS[1], "forward", Batch(1, 1, 8)) == 8.25
    assert given.pass_s(shared[0], "forward", Batch(1, 1, 8)) == 2.25


def test_sequence_parallel_sends_as_much_where_reduce_scatters_are_cheap():
    """docs/strategies.md: (8 x layers + 2) A over NCCL, (12 x layers + 2) A over gloo."""
    activation = 4 * BATCH.tokens * 384 * 4
    for scatters, multiple in ((True, 8 * 6 + 2), (False, 12 * 6 + 2)):
        work = recipes.tensor_parallel(recipes.shared_out(LAYERS, 4), BATCH, costs(scatters=scatters), 4, 1, 384, 4,
                                       shares_tokens=True)
        assert sent(work) == pytest.approx(multiple * activation * 3 / 4)


def test_hybrids_send_what_the_documents_say():
    layers, rest = 6 * 1_500_000, 4_001_000
    work = recipes.fsdp(LAYERS, BATCH, costs(), 8, group=4)
    gathered = 4 * (2 * layers + rest)
    assert sent(work) == pytest.approx(FP32 * ((gathered + PARAMETERS) * 3 / 4 + 2 * PARAMETERS / 4 * 1 / 2))
    work = recipes.zero(LAYERS, BATCH, costs(), 8, stage=3, secondary_group=2)
    assert sent(work) == pytest.approx(FP32 * PARAMETERS * (7 / 8 + 3 * 1 / 2 + 4 * 7 / 8))


def test_processes_that_wait_leave_their_cores_to_others():
    """Two processes on one core: each second of one takes half as long while the other waits."""
    step = Issued()
    first = step.compute("forward", 2)
    step.compute("forward", 3, first, device=1)
    assert simulate(step.work, crowding=2) == pytest.approx(1 + 1.5)
    step = Issued()
    step.compute("forward", 2)
    step.compute("forward", 3, device=1)
    assert simulate(step.work, crowding=2) == pytest.approx(2 + 0.5)


STAGES = [[layer] for layer in LAYERS[1:5]]  # one layer each: 1 second forward, 2 backward


@pytest.mark.parametrize("actions", [gpipe, one_forward_one_backward])
@pytest.mark.parametrize("micro_batches", [4, 8])
def test_pipelines_take_m_plus_p_minus_1_rounds(actions, micro_batches):
    work = pipeline(STAGES, range(4), actions(4, micro_batches), BATCH, costs(), 1, message=0)
    assert simulate(work) == pytest.approx((micro_batches + 3) * 3)


def test_a_slow_stage_sets_the_pace():
    """sum (F + G) + (m - 1) max (F + G)"""
    pieces = [[LAYERS[1]], [LAYERS[1]] * 2, [LAYERS[1]], [LAYERS[1]]]
    work = pipeline(pieces, range(4), gpipe(4, 8), BATCH, costs(), 1, message=0)
    assert simulate(work) == pytest.approx(5 * 3 + 7 * 6)


def test_messages_delay_the_first_micro_batch_there_and_back():
    link = LinkCost(0.25, 1e30)
    work = pipeline(STAGES, range(4), gpipe(4, 4), BATCH, costs(link), 1, message=1000)
    assert simulate(work) == pytest.approx((4 + 3) * 3 + 2 * 3 * 0.25)
    assert sent(work) == 4 * 2 * 3 * 1000


def test_replicas_of_a_pipeline_average_each_stages_gradients():
    link = LinkCost(0.0, 1e9)
    work = pipeline(STAGES, range(4), gpipe(4, 4), BATCH, costs(link), 2, message=0)
    assert simulate(work) == pytest.approx(21 + FP32 * 1_500_000 / 1e9)


def test_a_split_backward_pass_fills_the_bubble():
    """Two stages, two micro-batches: gradients of weights wait until there is nothing more urgent."""
    kinds = {"F": "forward", "B": "backward", "W": "weight"}
    actions = [[Action(kinds[each[0]], stage, int(each[1])) for each in queue.split()]
               for stage, queue in enumerate(["F0 F1 B0 W0 B1 W1", "F0 B0 F1 B1 W0 W1"])]
    work = pipeline(STAGES[:2], range(2), actions, BATCH, costs(), 1, message=0)
    assert simulate(work) == pytest.approx(7), "against (2 + 1) * 3 = 9 of 1F1B"


def test_stages_that_wait_for_each_other_are_an_error():
    with pytest.raises(ValueError, match="wait for each other"):
        pipeline(STAGES[:2], range(2), [[Action("backward", 0, 0)], [Action("forward", 1, 0)]], BATCH, costs(), 1, 0)


# ---------------------------------------------------------------- memory

def test_states_by_hand():
    layers = [Layer("embedding", (100,)), Layer("layer", (50,)), Layer("layer", (50,)), Layer("head", (8,))]
    assert memory.ddp(layers, 1000) == 16 * 208 + 1000
    assert memory.zero(layers, 1000, 4, 1) == 8 * 208 + 8 * 208 / 4 + 1000
    assert memory.zero(layers, 1000, 4, 2) == 4 * 208 + 12 * 208 / 4 + 1000
    assert memory.zero(layers, 1000, 4, 3) == 16 * 208 / 4 + 4 * 208 + 1000
    assert memory.fsdp(layers, 1000, 4) == 16 * 208 / 4 + 4 * (108 + 100) + 4 * 208 + 1000
    assert memory.zero(layers, 1000, 4, 3, 2) == 16 * 208 / 4 + 4 * 208 + 4 * 104 + 1000
    assert memory.tensor_parallel(recipes.shared_out(layers, 2), 1000, 1) == 16 * (108 + 50) + 1000
    assert memory.pipeline([layers[:2], layers[2:]], [10, 10], [2, 1]) == 16 * 150 + 20


@pytest.mark.parametrize("schedule, held", [("gpipe", [8, 8, 8, 8]), ("1f1b", [4, 3, 2, 1])])
def test_micro_batches_under_way(schedule, held):
    assert [memory.under_way(queue) for queue in ORDERS[schedule](4, 8)] == held


# ---------------------------------------------------------------- schedules and settings

@pytest.mark.parametrize("name", ["interleaved", "zero_bubble", "zbv"])
def test_schedules_are_pytorchs_own(name):
    from torch.distributed.pipelining import schedules

    from measurement.pipelines.torch_timeline import KINDS

    for stages, micro_batches in itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 4, 6, 8, 16, 24)):
        if not can_run(name, stages, micro_batches):
            continue
        made = object.__new__(schedules.get_schedule_class(TORCH_NAMES[name][0]))
        made.pp_group_size, made._n_microbatches, made.n_local_stages = stages, micro_batches, 2
        made.num_stages = made._num_stages = 2 * stages
        made.number_of_rounds = max(1, micro_batches // stages)
        made.microbatches_per_round = micro_batches // made.number_of_rounds
        theirs = [[(KINDS[each.computation_type.value], each.stage_index, each.microbatch_index)
                   for each in made._calculate_single_rank_operations(stage)
                   if each and each.microbatch_index is not None] for stage in range(stages)]
        assert ORDERS[name](stages, micro_batches) == theirs, (stages, micro_batches)


@pytest.mark.parametrize("strategy, expected", [
    ("ddp", {}), ("zero3_hpz2", {"base": "zero3", "group": 2}),
    ("fsdp_no_reshard", {"base": "fsdp", "reshards": False}),
    ("fsdp_bf16_gather_hybrid2_recompute", {"base": "fsdp", "group": 2, "gathers_bf16": True, "recomputes": True}),
    ("tensor_parallel_sequence_fsdp", {"base": "tensor_parallel", "group": 2, "shares_tokens": True,
                                       "shards_replicas": True})])
def test_a_row_names_its_setting(strategy, expected):
    row = {"strategy": strategy, "devices": 4, "pipeline_stages": 1, "micro_batches": 4, "micro_batch_size": 2,
           "replicas": 2 if strategy.startswith("tensor") else 4, "schedule": ""}
    assert setting_of(row) == Setting(**{"base": "ddp", "devices": 4, "micro_batches": 4, "micro_batch_size": 2}
                                      | expected)


def test_a_pipelines_row_names_its_schedule():
    row = {"strategy": "torch_pipeline", "devices": 4, "pipeline_stages": 2, "micro_batches": 8, "micro_batch_size": 2,
           "replicas": 2, "schedule": "zbv"}
    assert setting_of(row) == Setting("torch_pipeline", 4, 8, 2, 2, "zbv")


@pytest.mark.parametrize("strategy", ["zero3_offload", "data_parallel", "mine"])
def test_there_is_no_recipe_for_others(strategy):
    assert setting_of({"strategy": strategy}) is None


def test_prediction_needs_no_torch():
    code = "import sys, prediction.recipes, prediction.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

"""Communication read from traces: made-up ones with known answers, and those of real runs."""

import math

import pytest

from measurement.communication import Trace, bytes_on_the_wire, communication, read_trace, union
from tests.shared.runs import PROFILED, ROWS

MIB = 2**20


def event(name: str, start_ms: float, end_ms: float, thread: int = 1, category: str = "cpu_op", **args) -> dict:
    return {"ph": "X", "cat": category, "name": name, "tid": thread, "ts": start_ms * 1000,
            "dur": (end_ms - start_ms) * 1000, "args": args}


def gloo(operation: str, start_ms: float, end_ms: float, elements: int, thread: int, kind: str = "float") -> dict:
    return event(f"gloo:{operation}", start_ms, end_ms, thread, "user_annotation",
                 **{"Input Dims": [[elements]], "Input type": [kind]})


def test_union_of_intervals():
    assert union([(5, 6), (1, 3), (2, 4), (4, 4.5)]) == [(1, 4.5), (5, 6)]


def test_gloo_by_hand():
    """Two steps of 100 ms: compute 0-40 and 60-80, an all-reduce 30-50 of which 10 ms lie open, a message 85-95."""
    events = [event("aten::mm", 0, 40), event("aten::add", 10, 20), event("aten::mm", 60, 80),
              event("c10d::allreduce_", 29, 30), event("autograd::engine::evaluate_function", 0, 100),
              gloo("all_reduce", 30, 50, elements=MIB, thread=7),
              event("aten::add", 45, 50, thread=7),  # gloo's own
              gloo("send", 85, 95, elements=MIB // 2, thread=1, kind="long int"),
              gloo("recv", 90, 95, elements=MIB, thread=1)]
    costs = communication(Trace(events, {4}), steps=2)
    assert costs == pytest.approx({
        "collective_s_per_step": 0.010, "point_to_point_s_per_step": 0.005, "exposed_communication_s_per_step": 0.010,
        "device_s_per_step": 0.030, "collective_mib_per_step": 2.0, "collective_wire_mib_per_step": 3.0,
        "point_to_point_mib_per_step": 2.0})


def test_an_all_gather_counts_what_it_gives():
    events = [gloo("all_gather", 0, 1, MIB, thread=7, kind="c10::BFloat16")]
    costs = communication(Trace(events, {4}), steps=1)
    assert (costs["collective_mib_per_step"], costs["collective_wire_mib_per_step"]) == (8, 6)
    for sizes in ({1, 4}, set()):  # gloo's events do not name their group
        costs = communication(Trace(events, sizes), steps=1)
        assert costs["collective_mib_per_step"] is costs["collective_wire_mib_per_step"] is None


def test_bytes_on_the_wire_by_hand():
    """Of 12 bytes on 4 devices: a ring sends each device's quarter on 3 times, and for an all-reduce 6 times."""
    for names, expected in ((("all_reduce", "allreduce", "allreduce_coalesced"), 18), (("broadcast", "reduce"), 9),
                            (("all_gather", "_allgather_base", "reduce_scatter", "_reduce_scatter_base"), 9)):
        for name in names:
            assert bytes_on_the_wire(name, 12, 4) == expected
            assert bytes_on_the_wire(name, 12, 1) == 0
    assert bytes_on_the_wire("barrier", 0, None) == 0
    assert math.isnan(bytes_on_the_wire("all_to_all", 12, 4)) and math.isnan(bytes_on_the_wire("all_reduce", 12, None))


def test_nccl_by_hand():
    def nccl(kernel: str, start: float, end: float, **args) -> dict:
        return event(f"ncclDevKernel_{kernel}", start, end, 20, "kernel", **args)

    sizes = {"dtype": "Float", "In msg nelems": MIB, "Out msg nelems": MIB, "Group size": 4}
    events = [event("aten::mm", 0, 100),  # the host is busy: on a GPU that hides nothing
              event("gemm", 0, 30, 7, "kernel"), event("Memcpy HtoD", 90, 100, 7, "gpu_memcpy"),
              nccl("AllReduce_Sum_f32_RING_LL", 20, 50, **sizes, **{"Collective name": "allreduce"}),
              nccl("AllGather_RING_LL", 60, 70, **{"Collective name": "_allgather_base", "dtype": "BFloat16",
                                                   "In msg nelems": MIB, "Out msg nelems": 4 * MIB, "Group size": 2}),
              nccl("SendRecv", 80, 95, **sizes, **{"Collective name": "send"}),
              nccl("SendRecv", 80, 85, **sizes, **{"Collective name": "recv"})]
    costs = communication(Trace(events, {1, 2, 4}), steps=1)
    assert costs == pytest.approx({
        "collective_s_per_step": 0.040, "point_to_point_s_per_step": 0.015, "exposed_communication_s_per_step": 0.040,
        "device_s_per_step": 0.040, "collective_mib_per_step": 4 + 8, "collective_wire_mib_per_step": 6 + 4,
        "point_to_point_mib_per_step": 4.0})


def test_messages_of_unknown_size_are_not_counted_as_nothing():
    """Batched messages come without a name; beside one that has its size, the sum is still unknown."""
    batched = event("ncclDevKernel_SendRecv", 0, 10, 20, "kernel")
    named = event("ncclDevKernel_SendRecv", 20, 30, 20, "kernel", **{
        "Collective name": "send", "dtype": "Float", "In msg nelems": MIB})
    costs = communication(Trace([batched, named], {2}), steps=1)
    assert costs["point_to_point_mib_per_step"] is None
    assert costs["point_to_point_s_per_step"] == pytest.approx(0.020) and costs["collective_mib_per_step"] == 0


def test_one_process_with_two_gpus_by_hand():
    """As DataParallel's: NCCL without torch.distributed, and copies from GPU to GPU. Seconds are means over GPUs."""
    def on(gpu: int, *arguments, **args) -> dict:
        return event(*arguments, 7, "kernel", **args) | {"pid": gpu}

    copy = event("Memcpy PtoP (Device -> Device)", 50, 60, 7, "gpu_memcpy", bytes=3 * MIB) | {"pid": 0}
    events = [on(0, "ncclDevKernel_Broadcast_RING_LL", 0, 20), on(1, "ncclDevKernel_Broadcast_RING_LL", 0, 20),
              on(0, "gemm", 20, 50), on(1, "gemm", 10, 50), copy]
    costs = communication(Trace(events, {1}), steps=1)
    assert costs.pop("collective_mib_per_step") is costs.pop("collective_wire_mib_per_step") is None
    assert costs == pytest.approx({
        "collective_s_per_step": 0.020, "point_to_point_s_per_step": 0.005, "exposed_communication_s_per_step": 0.020,
        "device_s_per_step": 0.035, "point_to_point_mib_per_step": 3.0})


# ------------------------------------------------------------------ real runs

PROFILED_ONLY = ("--profile_steps", "2", "--max_steps", "5", "--max_eval_examples", "8")


def test_ddp_reduces_every_gradient_once_a_step(train):
    run = train(*ROWS["DDP x 2"], *PROFILED)
    summary = {name: float(value) for name, value in run.summary.items() if name.endswith("_per_step") and value}
    gradients = 4 * run.description["parameters"] / MIB
    # And of single numbers a few: the loss, the noise scale.
    assert gradients < summary["collective_mib_per_step"] < gradients + 1e-4
    assert summary["collective_wire_mib_per_step"] == summary["collective_mib_per_step"], "2 (n-1)/n is 1 on two"
    assert summary["point_to_point_mib_per_step"] == summary["point_to_point_s_per_step"] == 0
    assert 0 < summary["exposed_communication_s_per_step"] <= summary["collective_s_per_step"]
    assert summary["device_s_per_step"] > 0 and summary["host_cpu_s_per_step"] > 0
    for rank in range(2):
        names = {each["name"] for each in read_trace(run.folder / "profile" / f"rank{rank}.json.gz").events}
        assert {"gloo:all_reduce", "aten::addmm"} <= names


@pytest.mark.parametrize("row", ["pipeline x 2", "torch gpipe x 2"])
def test_a_pipeline_sends_activations_and_their_gradients(row, train):
    run = train(*ROWS[row], *PROFILED)
    steps = run.rows("steps.csv")
    # Untimed 2, one warms the profiler up, so 4 and 5 were profiled: hidden size 128, of 32 samples.
    padded = int(steps[4]["padded_tokens"]) - int(steps[2]["padded_tokens"])
    hidden, mask = padded * 128 * 4 / 2, padded * 8 / 2  # bytes a step
    first, last = (float(rank["point_to_point_mib_per_step"]) * MIB for rank in run.rows("ranks.csv"))
    # Besides, stages tell each other the shape when it changes.
    assert hidden + mask <= first < 1.02 * (hidden + mask)
    assert hidden <= last < 1.02 * hidden
    assert float(run.summary["collective_mib_per_step"]) < 0.01, "one replica has nobody to average gradients with"
    assert run.summary["collective_wire_mib_per_step"] == "", "stages are a group of two, replicas of one"
    assert "how many processes" in run.description["empty"]["collective_wire_mib_per_step"]


LAYERS, HIDDEN = 4, 128  # of the tiny model


def activations(run, steps: tuple[int, int] = (2, 4)) -> float:
    """MiB of a step's hidden states over all micro-batches: of the mean of two profiled steps, by default 4 and 5."""
    before, last = (int(run.rows("steps.csv")[place]["padded_tokens"]) for place in steps)
    return (last - before) / 2 * HIDDEN * 4 / MIB


def test_tensor_parallelism_adds_up_activations_four_times_a_layer(train):
    """Twice in the forward pass, twice in the backward pass."""
    run = train(*ROWS["tensor x 2"], *PROFILED)
    moved = float(run.summary["collective_mib_per_step"])
    assert moved == pytest.approx(4 * LAYERS * activations(run), rel=1e-3)
    assert run.summary["collective_wire_mib_per_step"] == run.summary["collective_mib_per_step"]
    assert float(run.summary["point_to_point_mib_per_step"]) == 0


def test_sequence_parallelism_gathers_and_scatters_instead(train):
    """An all-gather and a reduce-scatter for each all-reduce, which gloo all-reduces; once more at either end.

    The gradients of LayerNorms are added up as well, here for every micro-batch, as the noise scale is sampled.
    """
    run = train(*ROWS["tensor sequence x 2"], *PROFILED)
    gathered, reduced = (4 * LAYERS + 2) * activations(run), 4 * LAYERS * activations(run)
    norms = sum(weight.numel() for name, weight in run.weights().items() if "layer" in name and "LayerNorm" in name)
    norms *= (8 + 1) * 4 / MIB
    assert float(run.summary["collective_mib_per_step"]) == pytest.approx(gathered + reduced + norms, rel=1e-3)
    assert float(run.summary["collective_wire_mib_per_step"]) == pytest.approx(gathered / 2 + reduced + norms, rel=1e-3)


def test_tensor_groups_average_their_part_of_the_gradients(train, slow_lane):
    """On 2 x 2 devices each replica has half of the samples, each device half of the layers' matrices and the rest."""
    run = train(*ROWS["tensor 2 x 2"], *PROFILED)
    cut = ("query", "key", "value", "intermediate.dense", "output.dense.weight")
    held = sum(weight.numel() / (2 if "layer" in name and any(each in name for each in cut) else 1)
               for name, weight in run.weights().items())
    expected = 4 * LAYERS * activations(run) / 2 + 4 * held / MIB
    assert float(run.summary["collective_mib_per_step"]) == pytest.approx(expected, rel=1e-3)
    assert run.summary["collective_wire_mib_per_step"] == "", "groups of two and of four"


@pytest.mark.parametrize("row, gradients, parameters", [
    ("ZeRO-0 x 2", 1, 0), ("ZeRO-1 x 2", 1, 1), ("ZeRO-2 x 2", 4, 1), ("ZeRO-3 x 2", 4, 4),
    ("ZeRO-3 recompute x 2", 4, 4)])
def test_zero_sends_gradients_to_their_owners_and_gathers_parameters(row, gradients, parameters, train):
    """How often a step moves the model's size. Of 4 micro-batches stage 2 reduces each, and stage 3 gathers for each.

    Once for each: few enough parameters as these DeepSpeed keeps from the forward to the backward pass. The smallest
    are gathered once a step.
    """
    # An evaluation in between would leave some gathered, but not of stage 2, whose run `test_record.py` has as well.
    run = train(*ROWS[row], *(PROFILED if row == "ZeRO-2 x 2" else PROFILED_ONLY))
    model = 4 * run.description["parameters"] / MIB
    moved = float(run.summary["collective_mib_per_step"])
    assert moved == pytest.approx((gradients + parameters) * model, rel=1e-2)
    # Gloo and DeepSpeed's stages 1 and 2 all-reduce gradients; gathering parameters sends half as much.
    wire = float(run.summary["collective_wire_mib_per_step"])
    assert wire == pytest.approx((gradients + parameters / 2) * model, rel=1e-2)
    assert float(run.summary["point_to_point_mib_per_step"]) == 0


@pytest.mark.parametrize("row, flags, gathered", [
    ("FSDP x 2", (), lambda layers, rest: 4 * (2 * layers + rest)),  # twice for each of 4 micro-batches
    ("FSDP recompute x 2", (), lambda layers, rest: 4 * (2 * layers + rest)),
    ("FSDP no reshard x 2", (), lambda layers, rest: layers + rest),  # once a step
    ("FSDP x 2", ("--precision", "bf16", "--gather_precision", "bf16"), lambda layers, rest: 2 * (2 * layers + rest))])
def test_fsdp_gathers_layers_and_reduces_gradients_once_a_step(row, flags, gathered, train):
    run = train(*ROWS[row], *flags, *PROFILED_ONLY)
    sizes = {name: 4 * weight.numel() / MIB for name, weight in run.weights().items()}
    layers = sum(size for name, size in sizes.items() if "encoder.layer" in name)
    model = sum(sizes.values())
    moved = float(run.summary["collective_mib_per_step"])
    assert moved == pytest.approx(model + gathered(layers, model - layers), rel=1e-2)
    wire = float(run.summary["collective_wire_mib_per_step"])  # gloo all-reduces where NCCL would reduce and scatter
    assert wire == pytest.approx(model + gathered(layers, model - layers) / 2, rel=1e-2)


def elements(run, rank: int, operation: str) -> int:
    """Elements of a rank's tensors that gloo took for an operation in all profiled steps."""
    return sum(math.prod(shape) for event in read_trace(run.folder / "profile" / f"rank{rank}.json.gz").events
               if event["name"] == f"gloo:{operation}" for shape in event["args"]["Input Dims"])


@pytest.mark.parametrize("command", [ROWS["FSDP hybrid 2 x 2"]])
def test_hybrid_sharding_gathers_within_a_group_and_reduces_across(command, train):
    """Of P parameters, L of them in layers: a device gives its half for each gathering. Gloo all-reduces P in a group,
    where NCCL would reduce and scatter it, and half of P across the groups."""
    run = train(*command, *PROFILED_ONLY)
    sizes = {name: weight.numel() for name, weight in run.weights().items()}
    layers, model = sum(size for name, size in sizes.items() if "encoder.layer" in name), sum(sizes.values())
    micro_batches = int(run.summary["micro_batches"])
    for rank in range(4):
        assert elements(run, rank, "all_gather") == pytest.approx(2 * micro_batches * (layers + model) / 2, rel=1e-2)
        assert elements(run, rank, "all_reduce") == pytest.approx(2 * (model + model / 2), rel=1e-2)
    assert run.summary["collective_mib_per_step"] == "", "groups of two and of four"


@pytest.mark.parametrize("command", [ROWS["ZeRO-3 hpZ 2 x 2"]])
def test_hpz_gathers_from_all_once_a_step_and_then_within_a_group(command, train):
    """Of P parameters a device gives its quarter to all in the first micro-batch, in others its half to its group."""
    run = train(*command, *PROFILED_ONLY)
    model = sum(weight.numel() for weight in run.weights().values())
    micro_batches = int(run.summary["micro_batches"])
    for rank in range(4):
        gathered = model / 4 + (micro_batches - 1) * model / 2
        assert elements(run, rank, "all_gather") == pytest.approx(2 * gathered, rel=1e-2)
    assert run.summary["strategy"] == "zero3_hpz2"


def test_on_one_device_nothing_is_on_the_wire(train):
    run = train("bert_baseline.py", "--num_gpus", "1", *PROFILED_ONLY)
    assert float(run.summary["collective_mib_per_step"]) > 0, "the loss is reduced over the one"
    assert float(run.summary["collective_wire_mib_per_step"]) == 0


@pytest.mark.parametrize("command, expected", [
    (("bert_baseline.py", "--num_gpus", "4"), 3 / 2), (("zero.py", "--num_gpus", "4", "--stage", "1"), 3 / 2 + 3 / 4)])
def test_four_devices_send_half_as_much_again_as_two(command, expected, train):
    """Of the gradients 2 x 3/4 instead of 2 x 1/2; ZeRO-1 gathers the parameters besides, 3/4 of them."""
    run = train(*command, *PROFILED_ONLY)
    model = 4 * run.description["parameters"] / MIB
    assert float(run.summary["collective_wire_mib_per_step"]) == pytest.approx(expected * model, rel=1e-2)


def test_profiled_steps_are_off_the_throughput_clock_and_change_nothing(train):
    run, plain = train(*ROWS["DDP x 2"], *PROFILED), train(*ROWS["DDP x 2"])
    assert run.column("train_loss") == plain.column("train_loss")
    timed = sum(run.column("step_s")[5:])  # the last 3 of 8 steps, of rank 0; the clock stops when all ranks are done
    assert timed < 3 * 32 / float(run.summary["throughput_samples_per_s"]) + 1e-3
    assert not (plain.folder / "profile").exists()
    assert plain.summary["collective_s_per_step"] == ""
    assert plain.description["empty"]["collective_s_per_step"] == "no --profile_steps was given"


def test_no_step_waits_until_other_ranks_have_saved_their_traces(train):
    run = train("tests/scripts/slow_trace.py", "--num_gpus", "2", "--profile_steps", "2")
    fifth, sixth = run.column("elapsed_s")[4:6]
    assert sixth - fifth > 12, "the second rank slept after the fifth step, the last that was profiled"
    assert run.column("step_s")[5] < 6, "else the first waited for it within the sixth"

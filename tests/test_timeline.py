"""A pipeline's time: stages that only sleep, whose bubble is known, and what real runs leave behind."""

import json

import pytest

from measurement.pipelines.spans import (
    Span,
    bubble_pct,
    bubble_schedule_pct,
    idle_s,
    imbalance_pct,
    typical_step,
    watched_steps,
)
from tests.shared.runs import PIPELINES, ROWS, rows

STAGE_KINDS = ("forward", "backward", "send", "receive", "reduce", "optimizer")


@pytest.mark.alone
@pytest.mark.parametrize("count, units, micro_batches, expected_bubble, expected_imbalance", [
    (2, [1, 1], 2, 100 / 3, 0),
    (4, [1, 1, 1, 1], 8, 100 * 3 / 11, 0),
    # The slow stage sets the pace: 7 micro-batches at its 2 units and one through all 5, of 4 x 19 units 40 at work.
    (4, [1, 1, 2, 1], 8, 100 * (1 - 40 / 76), 60),
])
def test_bubble_of_stages_that_sleep(count, units, micro_batches, expected_bubble, expected_imbalance, start_ranks):
    output = start_ranks("tests/scripts/sleeping_stages.py", json.dumps(units), micro_batches, count=count,
                         check=True).stdout
    measured = json.loads(output.strip().splitlines()[-1])
    assert measured["bubble_pct"] == pytest.approx(expected_bubble, abs=5)
    assert measured["imbalance_pct"] == pytest.approx(expected_imbalance, abs=5)
    if not expected_imbalance:
        assert measured["bubble_schedule_pct"] == pytest.approx(expected_bubble)


def test_bubble_and_imbalance_by_hand():
    spans = [Span(0, 0, "forward", 0, 0, 2), Span(0, 0, "send", 0, 2, 3), Span(0, 1, "forward", 0, 3, 5),
             Span(0, 1, "backward", 0, 5, 8), Span(0, 0, "backward", 0, 8, 9), Span(0, 1, "reduce", 0, 8, 10),
             Span(0, 0, "optimizer", 0, 9, 12), Span(0, 1, "optimizer", 0, 10, 12)]
    assert bubble_pct(spans) == pytest.approx(100 * 10 / 18), "until the last backward pass has ended, after 9 s"
    assert idle_s(spans) == {(0, 0): 6, (0, 1): 4}, "the second stage reduces while the first still computes"
    assert imbalance_pct(spans) == pytest.approx(25)  # 5 against a mean of 4
    assert bubble_schedule_pct(4, 16) == pytest.approx(100 * 3 / 19)


def test_unequal_stages_can_idle_less_than_the_schedule_says():
    """1F1B of two micro-batches; the first stage takes twice as long, and is never idle."""
    first = [Span(0, 0, kind, number, start, start + 2) for kind, number, start in (
        ("forward", 0, 0), ("forward", 1, 2), ("backward", 0, 4), ("backward", 1, 6))]
    second = [Span(0, 1, kind, number, start, start + 1) for kind, number, start in (
        ("forward", 0, 2), ("backward", 0, 3), ("forward", 1, 4), ("backward", 1, 5))]
    assert bubble_pct(first + second) == pytest.approx(25)
    assert bubble_schedule_pct(2, 2) == pytest.approx(100 / 3)


def test_the_typical_step_is_the_one_of_median_duration():
    def rank(*ends):
        return {step: [Span(0, 0, "forward", 0, 0, end)] for step, end in enumerate(ends, start=2)}

    assert typical_step(watched_steps([rank(1, 9, 3), rank(1, 1, 2)])) == 4
    assert watched_steps([{}, {}]) == {}


@pytest.mark.parametrize("command", rows(*PIPELINES))
def test_every_stage_accounts_for_its_time(command, train):
    run = train(*command)
    summary, ranks = run.summary, run.rows("ranks.csv")
    for kind in STAGE_KINDS:
        column = f"{kind}_s_per_step"
        assert float(summary[column]) == pytest.approx(sum(float(rank[column]) for rank in ranks) / len(ranks))
    assert all(float(rank["forward_s_per_step"]) > 0 for rank in ranks)
    idle = [float(rank["idle_s_per_step"]) for rank in ranks]
    computing = [float(rank["forward_s_per_step"]) + float(rank["backward_s_per_step"]) for rank in ranks]
    # 2 of 8 steps are untimed, and of these the second is watched.
    assert summary["bubble_sd_pct"] == "" and "only one step" in run.description["empty"]["bubble_sd_pct"]
    assert float(summary["bubble_pct"]) == pytest.approx(100 * sum(idle) / (sum(idle) + sum(computing)), rel=1e-6)
    for rank, idle_s_per_step, compute_s_per_step in zip(ranks, idle, computing, strict=True):
        assert float(rank["bubble_pct"]) == pytest.approx(
            100 * idle_s_per_step / (idle_s_per_step + compute_s_per_step), rel=1e-6)
    schedules = [name for name in ("gpipe", "interleaved", "zero_bubble", "zbv") if name in command]
    assert summary["schedule"] == (schedules[0] if schedules else "1f1b")
    assert 0 <= float(summary["bubble_schedule_pct"]) < 50
    stages = int(summary["pipeline_stages"])
    assert [int(rank["stage"]) for rank in ranks].count(stages - 1) == int(summary["replicas"])


def test_the_timeline_is_a_chrome_trace_with_a_row_per_stage(slow_lane, train):
    run = train(*ROWS["pipeline 2 x 2"])
    trace = json.loads((run.folder / "timeline.json").read_text())["traceEvents"]
    assert {(each["pid"], each["tid"]) for each in trace if each["ph"] == "X"} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    forwards = [each["name"] for each in trace if each["ph"] == "X" and each["cat"] == "forward"
                and (each["pid"], each["tid"]) == (0, 0)]
    assert forwards == [f"forward {number}" for number in range(4)]
    assert all(each["dur"] >= 0 and each["ts"] >= 0 for each in trace if each["ph"] == "X")
    assert (run.folder / "timeline.png").stat().st_size > 10_000


def test_memory_of_every_stage(slow_lane, train):
    run = train(*ROWS["pipeline x 4"])
    peaks = [float(rank["peak_memory_gib"]) for rank in run.rows("ranks.csv")]
    assert len(peaks) == 4 and min(peaks) > 0.1
    assert float(run.summary["peak_memory_gib"]) == max(peaks)


def test_a_split_backward_pass_and_the_second_piece_show(train):
    run = train(*ROWS["torch zero_bubble x 2"])
    trace = json.loads((run.folder / "timeline.json").read_text())["traceEvents"]
    for stage in (0, 1):
        names = sorted(each["name"] for each in trace if each["ph"] == "X" and each["tid"] == stage
                       and each["cat"] in ("backward", "weight"))
        assert names == sorted(f"{kind} {number}{dash}" for kind in ("backward", "weight") for number in range(8)
                               for dash in ("", "'"))

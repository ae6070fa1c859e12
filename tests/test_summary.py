"""The summary of a made-up run, whose every number is known."""

import copy
import dataclasses

import pytest

from measurement.clock import Work
from measurement.columns import PROFILED, RANK_COLUMNS, STAGE_TIMES, SUMMARY_COLUMNS
from measurement.pipelines.spans import Span
from measurement.run_result import Progress, RankReport, RunResult
from measurement.summary import summarize
from workload.batches import BatchSplit
from workload.evaluation import Evaluation

FLAGS = {"task": "squad_v2", "model": "models/tiny/", "global_batch_size": 20, "micro_batch_size": 4,
         "precision": "fp32", "max_seq_length": 128, "seed": 7, "reference_batch_size": 10, "cpu_threads": 1,
         "num_gpus": 2, "measure": "all", "target_f1": None, "target_loss": 3.0, "deepspeed_config": "ds_config.json"}
CODE = {"source_digest": "aaa", "script_digest": "bbb", "commit": "ccc", "dirty": False, "torch": "2.13",
        "transformers": "5.23", "deepspeed": "0.19"}
RANKS = [{"rank": rank, "node": 0, "replica": 0, "stage": rank, "parameters": 10,
          "devices": [{"device": "cpu", "gpu": None}]} for rank in (0, 1)]
RUN_JSON = {"run_name": "run", "strategy": "pipeline", "flags": FLAGS, "deepspeed_config": {"a": 1},
            "workload": "w", "epoch_workload": "e", "cpu": {"name": "X"}, "environment": ["MKL_CBWR=COMPATIBLE"],
            "attempts": [CODE | {"matrix_product_s": [1.0, 1.0]}], "ranks": RANKS, "model": {"family": "fnet"}}
WORK = Work(steps=5, samples=100, tokens=1000, padded_tokens=1500, model_flops=2e12, hardware_flops=3e12, data_s=0.5)


def report(rank: int, data_s: float) -> RankReport:
    work = dataclasses.replace(WORK, data_s=data_s)
    readings = {0: {"peak_memory_gib": 1.0, "cpu_utilization_pct": 40.0, "other_load_pct": 3.0, "steal_pct": 1.0},
                1: {"peak_memory_gib": 2.0, "other_load_pct": 30.0, "steal_pct": 0.0}}
    return RankReport(progress=Progress(6, 120, 1200, 1800, rank, 4.0, work), spans={},
                      devices={} if rank else readings, missing={"power_w": "the run used no GPU"}, profile={},
                      peak_memory_gib=None, matrix_product_s=(0.9, 1.1)[rank])


def result(**changed) -> RunResult:
    """A pipeline of two stages: s0 computes in 4 of 5 seconds, s1 in 2; in another step in 4 of 4 and 2."""
    steps = [[Span(0, 0, "forward", 0, 0, 1), Span(0, 1, "forward", 0, 1, 2), Span(0, 1, "backward", 0, 2, 3),
              Span(0, 0, "backward", 0, end - 3, end), Span(0, 0, "optimizer", 0, end, end + 1)] for end in (5, 4)]
    return RunResult(**{
        "run_json": RUN_JSON, "batch_split": BatchSplit(1, 5, 4), "gradient_samples": 4, "stages": 2,
        "schedule": "1f1b", "actions": None, "steps_per_epoch": 3, "runtime_s": 12.5,
        "evaluation": Evaluation(2.5, {"exact_match": 10.0, "f1": 20.0}, None),
        "target_reached": {"time_to_target_s": 9.0, "samples_to_target": 60}, "losses": [5.0, 4.0, 4.5, float("nan")],
        "noise_norms": [(13.0, 5.0)], "epoch_s": 3.0, "skipped_steps": 1, "peak_tflops": 0.5,
        "peak_tflops_source": "--peak_tflops", "reports": [report(0, 0.5), report(1, 1.0)], "watched_steps": steps,
        "profile_has_devices": None} | changed)


def changed_json(**changed) -> RunResult:
    return result(run_json=RUN_JSON | changed)


def test_every_number_of_a_made_up_run():
    row = summarize(result()).row
    noise = 40 / 3  # |G|^2 = 3 and tr = 40, see test_measurement
    efficiency = (noise + 10) / (noise + 20)
    expected = {
        "run_name": "run", "strategy": "pipeline", "model": "tiny", "devices": 2, "nodes": 1, "replicas": 1,
        "pipeline_stages": 2, "micro_batches": 5, "forward_samples": 4, "hardware": "CPU X, MKL_CBWR=COMPATIBLE",
        "optimizer_steps": 6, "samples": 120, "runtime_s": 12.5, "skipped_steps": 1, "epoch_s": 3.0, "seed": 7,
        "throughput_samples_per_s": 25.0, "throughput_tokens_per_s": 250.0, "model_flops_per_sample": 2e10,
        "mfu_pct": 50.0, "hfu_pct": 75.0, "peak_tflops": 0.5, "data_s_per_step": 0.2,
        "validation_loss": 2.5, "f1": 20.0, "target_loss": 3.0, "time_to_target_s": 9.0, "samples_to_target": 60,
        "peak_memory_gib": 2.0, "cpu_utilization_pct": 40.0,
        "machine_drift_pct": 10.0, "other_load_pct": 30.0, "steal_pct": 1.0,
        "noise_scale_samples": noise, "noise_scale_negative_pct": 0.0, "statistical_efficiency": efficiency,
        "goodput_samples_per_s": 25 * efficiency,
        "published_stats_efficiency": 0.75 / 4, "published_goodput": 25 * 0.75 / 4,
        "bubble_pct": (40 + 25) / 2, "bubble_sd_pct": 15 / 2**0.5, "bubble_schedule_pct": 100 / 6,
        "imbalance_pct": 100 / 3, "forward_s_per_step": 1.0, "backward_s_per_step": 2.0, "send_s_per_step": 0.0,
        "optimizer_s_per_step": 0.5, "deepspeed_settings": "a=1", "tuned_by": "hand",
        "source_digest": "aaa", "commit": "ccc", "dirty": "no", "torch": "2.13", "complete": "yes"}
    assert {name: row[name] for name in expected} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in expected.items()}
    first, second = summarize(result()).ranks
    assert (first["bubble_pct"], first["idle_s_per_step"], second["bubble_pct"]) == pytest.approx((10, 0.5, 55))


def test_an_empty_column_has_a_reason_and_a_filled_one_has_none():
    for made in (result(), result(watched_steps=[], schedule=None, stages=1), result(profile_has_devices=False),
                 result(losses=[], noise_norms=[], epoch_s=None, peak_tflops=None, peak_tflops_source="no idea"),
                 changed_json(flags=FLAGS | {"measure": "throughput"}, deepspeed_config=None)):
        summary = summarize(made)
        assert list(summary.row) == SUMMARY_COLUMNS and list(summary.ranks[0]) == RANK_COLUMNS
        assert summary.empty.keys() == {name for name, value in summary.row.items() if value is None}
        assert "unknown" not in summary.empty.values()


def test_the_reasons_for_empty_columns():
    empty = summarize(result(watched_steps=[], schedule=None, peak_tflops=None, peak_tflops_source="no idea")).empty
    assert empty["mfu_pct"] == "no idea" and empty["power_w"] == "the run used no GPU"
    assert {empty[name] for name in ("schedule", "bubble_pct", *STAGE_TIMES)} == {"not a pipeline"}
    assert {empty[name] for name in PROFILED} == {"no --profile_steps was given"}
    idle = report(0, 0)
    idle = dataclasses.replace(idle, progress=dataclasses.replace(idle.progress, throughput_s=0.0, work=Work()))
    empty = summarize(result(reports=[idle, idle])).empty
    assert empty["throughput_samples_per_s"] == empty["goodput_samples_per_s"] == (
        "no step after those that are not timed")


def test_intervals_are_the_images_of_the_noise_scales():
    """Norms of 13 and 5 give |G|^2 = 3, 13 and 9 give 8; throughput is 25, M0 is 10 and M is 20."""
    summary = summarize(result(noise_norms=[(13.0, 5.0), (13.0, 9.0)] * 10))
    row, ends = summary.row, ("", "_low", "_high")
    phi, low, high = (row["noise_scale_samples" + end] for end in ends)
    assert 0 < low < phi < high and row["sampled_steps"] == 20
    for end, scale in zip(ends, (phi, low, high), strict=True):
        assert row["statistical_efficiency" + end] == pytest.approx((scale + 10) / (scale + 20))
        assert row["goodput_samples_per_s" + end] == pytest.approx(25 * (scale + 10) / (scale + 20))
    assert row["effective_sampled_steps"] == pytest.approx(20 * 5.5**2 / (3**2 + 8**2) * 2)


def test_a_noise_scale_without_an_upper_end_says_so_and_efficiency_ends_at_one():
    summary = summarize(result(noise_norms=[(20.0, 10.0), (20.0, 0.5)] * 10))
    assert summary.row["noise_scale_samples_high"] is None and "unbounded" in summary.empty["noise_scale_samples_high"]
    assert summary.row["statistical_efficiency_high"] == 1 and summary.row["goodput_samples_per_s_high"] == 25
    few = summarize(result()).empty
    assert "too few steps: 1 " in few["noise_scale_samples_low"] and "too few" in few["goodput_samples_per_s_high"]


def test_energy_of_a_part_of_the_devices_or_of_a_part_of_the_run_is_not_given():
    full, half = ({rank: {"energy_j": 10.0, "window_energy_j": 5.0} for rank in ranks} for ranks in ((0, 1), (0,)))
    for devices, energy in ((full, (20.0, 100.0)), (half, (None, None))):
        reports = [dataclasses.replace(report(0, 0), devices=devices), report(1, 0)]
        row = summarize(result(reports=reports)).row
        assert (row["energy_j"], row["energy_j_per_1000_samples"]) == energy
    reports = [dataclasses.replace(report(0, 0), devices=full), report(1, 0)]
    resumed = summarize(result(reports=reports, run_json=RUN_JSON | {"attempts": [CODE, CODE]}))
    assert resumed.row["energy_j"] is None and "resumed" in resumed.empty["energy_j"]


def test_drift_is_counted_from_the_first_attempt_on_as_many_processes():
    def attempts(*products) -> RunResult:
        return changed_json(attempts=[CODE | {"matrix_product_s": product} for product in products])

    made = summarize(attempts([1.0, 1.0]))
    assert [rank["machine_drift_pct"] for rank in made.ranks] == pytest.approx([-10, 10])
    for products, drift in (([[1.0, 1.0], [1.3, 1.0]], 30), ([[1.0], [1.0, 1.0]], 10), ([[1.0, 1.0], [0.5, 1.0]], -50),
                            ([[1.0, 2.0], [1.0, 2.0]], -45)):
        assert summarize(attempts(*products)).row["machine_drift_pct"] == pytest.approx(drift), products
    older = summarize(changed_json(attempts=[CODE]))  # an attempt of a commit that did not measure it
    assert older.row["machine_drift_pct"] is None and older.empty["machine_drift_pct"]


def test_a_run_resumed_with_other_code_passes_for_neither():
    other = CODE | {"source_digest": "ddd", "dirty": True, "torch": "2.11"}
    row = summarize(changed_json(attempts=[CODE, other, CODE])).row
    assert row["source_digest"] == "aaa + ddd" and row["torch"] == "2.13 + 2.11"
    assert row["dirty"] == "yes" and row["commit"] == "ccc"
    row = summarize(changed_json(attempts=[{"strategy": "ddp"}, CODE])).row  # the first wrote no digests
    assert row["source_digest"] == "unknown + aaa" and row["dirty"] is None


def test_without_git_the_commit_is_empty_with_a_reason():
    summary = summarize(changed_json(attempts=[CODE | {"commit": None, "dirty": None}]))
    assert summary.row["commit"] is summary.row["dirty"] is None
    assert "git" in summary.empty["commit"] and "git" in summary.empty["dirty"]


def test_a_summary_changes_nothing():
    made = result()
    before = copy.deepcopy(made)
    assert summarize(made) == summarize(made) and made == before

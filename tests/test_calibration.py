"""A calibration: what is fitted, what is read back, what is refused; and predictions from one that is made by hand."""

import json
import os
import statistics
import sys
import time
from dataclasses import replace

import pytest

from prediction import calibrate, engine_costs
from prediction.calibrate import without_duration
from prediction.calibration import RECOMPUTE, SMALLEST_RATIO, Engine, read_calibration
from prediction.costs import FP32, Batch, PassCost
from prediction.engine_costs import (
    SHAPES,
    EngineRun,
    exchange_settings,
    fit_engine,
    fit_exchange,
    product_s,
)
from prediction.events import simulate
from prediction.layer_times import fit_pass
from prediction.links import LinkCost
from prediction.predict import batch_lengths, deal_out, exposed_s, issue, predict
from prediction.setting import Setting
from tests.shared.calibrations import LAYERS, PARAMETERS, made
from workload.errors import InputError

# ---------------------------------------------------------------- fits

def test_a_pass_is_fitted_by_what_it_costs():
    true = PassCost(0.0, 2e-3, 3e-6, 4e-9)
    batches = [Batch(1, samples, length) for samples, length in ((1, 96), (4, 96), (4, 192), (1, 384), (8, 384))]
    found = fit_pass(batches, [true.seconds(batch) for batch in batches])
    assert (found.a, found.b, found.c) == pytest.approx((true.a, true.b, true.c))
    assert found.floor == pytest.approx(true.seconds(batches[0]))


def test_an_engines_ratio_and_what_it_adds_to_each_micro_batch_and_step():
    passes, update = made().passes, 0.25
    steps = [Batch(*shape, length) for shape in SHAPES for length in (64, 128, 256)]
    taken = [1.5 * (update + batch.micro_batches * 4 * 3e-3 * batch.tokens) + 0.125 * batch.micro_batches + 0.0625
             for batch in steps]
    runs = [EngineRun(list(zip(steps, taken, strict=True)), 0.75 + 1e-4 * tokens, tokens, None)
            for tokens in (256, 1024)]
    engine = fit_engine(passes, update, PARAMETERS, LAYERS, runs)
    assert (engine.ratio, engine.micro_batch_s, engine.step_s, engine.token_gib) == pytest.approx(
        (1.5, 0.125, 0.0625, 1e-4), rel=1e-3)
    assert engine.base_gib == pytest.approx(0.75 - 16 * PARAMETERS / 2**30)


def test_noisy_steps_do_not_make_passes_free():
    passes, runs = made().passes, []
    for (micro_batches, samples), taken in zip(SHAPES, (1.0, 0.5, 0.9), strict=True):
        steps = [(Batch(micro_batches, samples, length), taken) for length in (64, 128, 256)]
        runs.append(EngineRun(steps, 1.0, samples * 256, None))
    engine = fit_engine(passes, 0.0, PARAMETERS, LAYERS, runs)
    assert engine.ratio == pytest.approx(SMALLEST_RATIO, rel=0.01)
    calibration = made()
    assert calibration.warning is None
    doubtful = replace(calibration, engines={**calibration.engines, "fsdp": engine})
    assert doubtful.warning and doubtful.warning.startswith("Do not trust the predictions of fsdp: ")


def test_a_few_slow_steps_do_not_change_a_fit():
    passes = made().passes
    steps = [(batch, 4 * 3e-3 * batch.tokens * batch.micro_batches * (5 if slow else 1)) for shape in SHAPES
             for batch, slow in ((Batch(*shape, length), length == 128) for length in (64, 96, 128, 192, 256))]
    engine = fit_engine(passes, 0.0, PARAMETERS, LAYERS, [EngineRun(steps, 1.0, 256, None)] * 2)
    assert 1.0 <= engine.ratio < 1.25, "least squares of all steps alike would say more"


@pytest.mark.parametrize("name", exchange_settings(4, 4, (1, 2, 4)))
def test_what_an_exchange_costs_is_found_again(name):
    """Steps are simulated with exchanges of 20 ms; the fit to them finds these."""
    calibration = replace(made(LinkCost(1e-3, 1e9)), devices=4, cores=4)
    setting = exchange_settings(4, 4, (1, 2, 4))[name]
    known = replace(calibration, engines={each: replace(engine, exchange_s=0.02)
                                          for each, engine in calibration.engines.items()})
    batches = [Batch(4, 4, length) for length in (8, 16, 24)]
    costs = known.costs(setting)
    steps = [(batch, simulate(issue(known, setting, batch, costs), costs.slowdown, costs.crowding))
             for batch in batches]
    assert fit_exchange(calibration, setting, steps) == pytest.approx(0.02, rel=1e-3)
    assert fit_exchange(calibration, setting, [(batch, taken / 100) for batch, taken in steps]) == 0


def test_engines_run_on_all_devices_only_where_the_model_has_so_many_parts():
    assert exchange_settings(1, 4, (1, 2)) == {}
    assert {"pipeline", "torch_pipeline", "tensor_parallel"}.isdisjoint(exchange_settings(8, 4, (1, 2, 4)))


def test_a_run_is_brought_to_another_speed_of_the_machine(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [{"matrix_product_s": [2.0, 4.0]}],
                                                   "at_the_end": {"matrix_product_s": [3.0, 3.2]}}))
    assert product_s(tmp_path) == pytest.approx(3.05)
    run = EngineRun([(Batch(1, 1, 8), 6.1)], 1.0, 8, product_s(tmp_path)).at_speed(1.0)
    assert run.steps == [(Batch(1, 1, 8), pytest.approx(2.0))]


def test_a_machine_that_changed_during_a_run_says_nothing_of_its_speed(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [{"matrix_product_s": [2.0]}],
                                                   "at_the_end": {"matrix_product_s": [2.3]}}))
    assert product_s(tmp_path) is None
    assert EngineRun([(Batch(1, 1, 8), 6.0)], 1.0, 8, None).at_speed(1.0).steps == [(Batch(1, 1, 8), 6.0)]


@pytest.mark.parametrize("devices", [1, 4])
def test_engines_are_measured_in_company_to_the_last(devices, monkeypatch):
    """Else the last engine has the cores to itself, and is predicted too fast. Each run has a GPU of its own."""
    begun, busy = [], set()

    def run(name, own, flags, count, batch, step_s, bar, settings):
        shape = (name, batch.micro_batches, batch.samples)
        begun.append(shape)
        gpu = settings["CUDA_VISIBLE_DEVICES"]
        assert gpu not in busy
        busy.add(gpu)
        time.sleep(0.001)
        busy.remove(gpu)
        return shape

    monkeypatch.setattr(engine_costs, "_run", run)
    monkeypatch.setattr("workload.launch.gpus.visible_gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,2,3")
    found = engine_costs.measure_engines([], devices, 1.0, None)
    assert found == {name: [(name, *shape) for shape in engine_costs.SHAPES] for name in engine_costs.ENGINES}
    assert len(begun) == len(engine_costs.SHAPES) * len(engine_costs.ENGINES) + devices - 1


def test_device_cpu_takes_effect_before_devices_are_counted(monkeypatch):
    def count(*_, **__):
        raise InputError(f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')}")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # put back after the test
    monkeypatch.setattr(calibrate, "devices_asked_for", count)
    monkeypatch.setattr(sys, "argv", ["calibrate", "--sample", "--model", "tiny", "--device", "cpu"])
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES is -1"):
        calibrate.main()


# ---------------------------------------------------------------- the file

def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(made(lengths=(8, 16)).as_json()))
    assert read_calibration(path) == made(lengths=(8, 16))


@pytest.mark.parametrize("content, message", [
    (None, "there is no such calibration"), ("{", "cannot be read"), ("[]", "cannot be read"),
    ("{}", "cannot be read")])
def test_a_calibration_that_cannot_be_read_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "calibration.json"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_calibration(path)
    assert "python -m prediction.calibrate" in str(caught.value) and "\n" not in str(caught.value)


def test_a_calibration_takes_a_runs_flags_but_not_its_length():
    flags = ["--task", "imdb", "--epochs", "20", "--max_steps=5", "--seed", "1", "--epochs=3", "--max_steps", "7"]
    assert without_duration(flags) == ["--task", "imdb", "--seed", "1"]


# ---------------------------------------------------------------- predictions

@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
def test_free_links_scale_perfectly(strategy):
    one, four = (predict(made(), Setting(strategy, n, 4, 2)) for n in (1, 4))
    assert one.step_s == four.step_s == pytest.approx(4 * 2 * 64 * 4 * 3e-3)
    assert four.throughput_samples_per_s == pytest.approx(4 * one.throughput_samples_per_s)
    assert four.exposed_communication_s_per_step == pytest.approx(0, abs=1e-9) and one.wire_mib_per_step == 0
    assert four.bubble_pct is None


def test_an_engines_own_costs_count():
    assert predict(made(ratio=2.0, added=0.5), Setting("ddp", 1, 4, 2)).step_s == pytest.approx(
        4 * (2 * 2 * 64 * 4 * 3e-3 + 0.5))


def test_computing_again_costs_what_it_costs_ddp():
    plain, more = made(), Engine(1.5, 0.25, 0.125, 0.75, 0.5e-4)
    calibration = replace(plain, engines={**plain.engines, RECOMPUTE: more})
    setting = Setting("zero2", 1, 4, 2, recomputes=True)
    assert predict(calibration, setting).step_s == pytest.approx(4 * (1.5 * 2 * 64 * 4 * 3e-3 + 0.25) + 0.125)
    assert predict(calibration, setting).peak_memory_gib == pytest.approx(0.75 + 16 * PARAMETERS / 2**30 + 0.5e-4 * 128)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipelines_bubble(schedule):
    """(p - 1) / (m + p - 1)"""
    found = predict(made(), Setting("pipeline", 4, 8, 2, pipeline_stages=4, schedule=schedule))
    assert found.bubble_pct == pytest.approx(100 * 3 / 11)
    assert found.throughput_samples_per_s == pytest.approx(16 / (11 * 2 * 64 * 3e-3))


def test_communication_that_nothing_hides_is_exposed():
    link = LinkCost(0.0, 1e9)
    found = predict(made(link), Setting("zero1", 4, 1, 1))
    gathered = FP32 * PARAMETERS * 3 / 4 / 1e9  # after the update
    assert found.exposed_communication_s_per_step >= gathered
    assert found.step_s == pytest.approx(64 * 4 * 3e-3 + found.exposed_communication_s_per_step)
    assert exposed_s(found.timeline) == found.exposed_communication_s_per_step


def test_memory_by_hand():
    found = predict(made(), Setting("zero2", 4, 4, 2))
    assert found.peak_memory_gib == pytest.approx(0.5 + (4 + 12 / 4) * PARAMETERS / 2**30 + 1e-4 * 2 * 64)


def test_batches_are_grouped_by_length_as_runs_group_them():
    grouped = batch_lengths(made(lengths=tuple(range(1, 401))), 32, 50)
    assert len(grouped) == 50 and all(length % 8 == 0 and length <= 384 for length in grouped)
    assert min(grouped) < 40 and statistics.mean(grouped) < 230, "ungrouped, nearly every batch would have 384"


def test_pieces_hold_every_layer_once():
    pieces, stage_of = deal_out(LAYERS, Setting("torch_pipeline", 2, 4, 1, pipeline_stages=2, schedule="zbv"))
    assert [len(piece) for piece in pieces] == [2, 1, 1, 2] and stage_of == [0, 1, 1, 0]
    assert [layer for piece in pieces for layer in piece] == list(LAYERS)


def test_fewer_processes_than_were_calibrated_have_more_of_the_cores():
    """Calibrated with 4 processes on 2 cores: two of them take half the time."""
    crowded = replace(made(), devices=4, cores=2, scatters=False)
    one, two, four = (predict(crowded, Setting("ddp", devices, 4, 2)).step_s for devices in (1, 2, 4))
    assert one == two == pytest.approx(four / 2)


def test_more_gpus_than_were_calibrated_share_nothing():
    gpus = replace(made(), devices=1, cores=1)
    one, four = (predict(gpus, Setting("ddp", devices, 4, 2)).step_s for devices in (1, 4))
    assert one == pytest.approx(four)

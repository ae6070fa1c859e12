"""Plans: what is searched, links that are not at hand, verdicts, and `plan.py` as users start it."""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

import plan as script
from measurement.environment import source_digest, versions
from prediction.calibration import read_calibration
from prediction.links import DataSheet, LinkCost, Links, extrapolated, hops, links_of, read_links
from prediction.plan_report import Wanted, plan_text
from prediction.planning import Band, Option, best_of_each, plan, read_band, verdict, would_fit
from prediction.predict import predict
from prediction.search import command, settings
from prediction.setting import Setting
from tests.shared.calibrations import OPERATIONS, made
from tests.shared.runs import ROOT
from verification.machine import hardware_name
from workload.argument_checks import divisors
from workload.arguments import (
    Arguments,
    FsdpArguments,
    PipelineArguments,
    TensorParallelArguments,
    TorchPipelineArguments,
    ZeroArguments,
    parse_arguments,
)
from workload.errors import InputError

LINK = LinkCost(1e-5, 1e9)
BAND = Band(10.0, 10.0)
ARGUMENTS = {"zero.py": ZeroArguments, "fsdp.py": FsdpArguments, "tensor_parallel.py": TensorParallelArguments,
             "pipeline.py": PipelineArguments, "torch_pipeline.py": TorchPipelineArguments}


def links(devices: int) -> Links:
    return Links(extrapolated(made(LINK).measured_links, [n for n in range(2, devices + 1) if devices % n == 0]))


# ---------------------------------------------------------------- search

@pytest.mark.parametrize("devices", [1, 4, 8])
def test_every_setting_has_the_same_global_batch_and_all_devices(devices):
    found = list(settings(devices, 32, 4, (1, 2, 4)))
    assert len(set(found)) == len(found)
    assert {setting.global_batch_size for setting in found} == {32}
    assert {setting.devices for setting in found} == {devices}
    assert all(devices == setting.replicas * setting.pipeline_stages * setting.tensor_group for setting in found)


def test_every_setting_is_a_command_that_its_script_takes():
    for setting in settings(4, 16, 4, (1, 2, 4)):
        _, script, *flags = shlex.split(command(setting, ["--model", "my model"]))
        arguments = parse_arguments(ARGUMENTS.get(script, Arguments), flags)
        assert arguments.num_gpus == 4 and arguments.global_batch_size == 16
        assert arguments.activation_checkpointing == setting.recomputes
        assert arguments.model == "my model"


def test_the_best_of_a_strategy_is_its_fastest_or_what_needs_least():
    fast, slow = (Option(setting, 1.0, predict(made(), setting))
                  for setting in (Setting("ddp", 2, 1, 4), Setting("ddp", 2, 1, 2)))
    assert slow.prediction
    slow = replace(slow, prediction=replace(slow.prediction, throughput_samples_per_s=fast.rate / 2))
    large, small = (Option(Setting("fsdp", 2, 1, size), gib, None) for size, gib in ((4, 9.0), (2, 8.0)))
    assert best_of_each([slow, fast, large, small]) == {"ddp": fast, "fsdp": small}


def test_a_plan_says_whose_calibration_failed(calibration):
    known = read_calibration(calibration)
    noisy = replace(known, engines={**known.engines, "pipeline": replace(known.engines["pipeline"], ratio=0.5)})
    text = plan_text(noisy, [plan(noisy, 2, 8, links(2), memory=100.0, band=BAND)], Wanted(), [])
    assert "Do not trust the predictions of pipeline: the machine's speed changed" in text


@pytest.mark.parametrize("devices, node", [(16, 6), (12, 8)])
def test_nodes_need_not_divide_the_devices(devices, node):
    links = links_of(made(LINK).measured_links, ["nvlink-4", "infiniband-ndr"], divisors(devices), node)
    found = plan(made(LINK), devices, devices, links, memory=1e6, band=BAND)
    assert all(option.prediction for option in found.options)


def test_a_plan_for_gpus_says_that_none_was_checked(calibration):
    known = read_calibration(calibration)
    for scatters in (False, True):
        text = plan_text(replace(known, scatters=scatters), [plan(known, 2, 8, links(2), 100.0, BAND)], Wanted(), [])
        assert ("no prediction for a GPU has been checked" in text) == scatters


def test_what_does_not_fit_is_not_predicted_and_says_where_it_fits():
    small = made(LINK)
    found = plan(small, 2, 16, links(2), memory=0.6, band=BAND)
    assert found.options and any(option.prediction is None for option in found.options)
    whole = found.best["ddp"]
    assert whole.prediction is None and found.would_fit["ddp"] is None, "DDP needs as much on each device"
    assert found.would_fit["zero3"] != 2 and all(option.prediction is None for option in found.options
                                                 if option.needed_gib * 1.1 > 0.6)


# ---------------------------------------------------------------- links

def test_links_extrapolate_with_the_bandwidth_and_the_latency_of_more_hops():
    found = extrapolated({("all-reduce", 4): LINK, ("all-gather", 4): LINK, ("reduce-scatter", 4): LINK,
                          ("send/receive", 2): LINK}, [2, 4, 16])
    assert found["all-reduce", 4] == LINK
    assert found["all-reduce", 16] == LinkCost(2e-5, 1e9), "a tree of twice the height"
    assert found["all-gather", 16].latency_s == pytest.approx(5e-5), "a ring of 15 messages instead of 3"
    assert found["send/receive", 16] == LINK and hops("send/receive", 16) == 1


def test_nodes_share_what_joins_them():
    inside = {(operation, n): LinkCost(0.0, 100e9) for operation in OPERATIONS for n in (2, 4, 8)}
    network = DataSheet("nodes", 10e9, "device", 1e-6)
    joined = Links(inside, network, 8)
    assert joined.cost("all-reduce", 8, 8) == inside["all-reduce", 8], "one node"
    assert joined.cost("all-reduce", 16, 16).bandwidth_bytes_per_s == 80e9, "8 devices with a link each"
    assert joined.cost("all-reduce", 2, 16).bandwidth_bytes_per_s == 10e9, "one device of each node"
    shared = Links(inside, replace(network, per="node"), 8)
    assert shared.cost("all-reduce", 16, 16).bandwidth_bytes_per_s == 10e9
    assert shared.cost("all-reduce", 2, 16).bandwidth_bytes_per_s == 10e9 / 8, "eight such groups at once"
    assert shared.cost("send/receive", 2, 16).bandwidth_bytes_per_s == 10e9 / 8
    fast = Links(inside, replace(network, bytes_per_s=50e9), 8)
    assert fast.cost("all-reduce", 16, 16).bandwidth_bytes_per_s == 100e9, "not faster than within a node"


def test_every_link_of_the_table_has_its_source():
    with open(ROOT / "prediction" / "links.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(read_links())
    for row in rows:
        assert row["source"].startswith("https://") and float(row["gb_per_s"]) > 0
        assert row["efficiency_source"].startswith("https://") and 0 < float(row["efficiency"]) < 1
        assert float(row["measured_gb_per_s"]) / float(row["gb_per_s"]) == pytest.approx(float(row["efficiency"]),
                                                                                         abs=5e-4)
        assert bool(row["latency_us"]) == row["latency_source"].startswith("https://")


@pytest.mark.parametrize("names, message", [(["token-ring"], "there is no such link; choose from nvlink-3"),
                                            (["infiniband-hdr", "ethernet-10"], "give one link that joins devices")])
def test_links_that_cannot_be(names, message):
    with pytest.raises(InputError, match=message):
        links_of(made(LINK).measured_links, names, [2, 4], 8)


# ---------------------------------------------------------------- verdicts

def options(**rates: float) -> dict[str, Option]:
    found = predict(made(), Setting("ddp", 1, 1, 1))
    return {base: Option(Setting(base, 2, 1, 1), 1.0, replace(found, throughput_samples_per_s=rate))
            for base, rate in rates.items()}


def test_a_winner_is_named_only_where_the_gap_is_larger_than_the_band():
    def said(**rates: float) -> str:
        return verdict(options(**rates), BAND, lambda setting: setting.base)

    assert said(ddp=120.0, fsdp=100.0).startswith("ddp is the fastest, 20 % ahead of fsdp")
    assert "No strategy is clearly the fastest: ddp and fsdp lie within the 10 %" in said(ddp=109, fsdp=100, zero1=90)
    assert said(ddp=1.0) == "Only ddp fits."
    assert verdict({}, BAND, str) == "Nothing fits."


def test_the_band_covers_nine_in_ten_of_the_errors_of_such_runs(tmp_path):
    path = tmp_path / "errors.csv"
    rows = [f"{devices},2,{error},{error / 2},{steady}" for devices, error, steady in
            [*[(2, number, True) for number in range(-10, 0)], (2, 99, False), (4, 30, True)]]
    path.write_text("devices,cores,throughput_error_pct,memory_error_pct,is_steady\n" + "\n".join(rows) + "\n")
    assert read_band(False, path) == Band(9.0, 4.5)
    assert read_band(True, path) == Band(30.0, 15.0)


def test_a_batch_that_more_devices_do_not_divide_grows_until_they_do():
    assert would_fit(made(LINK), "ddp", devices=3, global_batch_size=63, memory=1e6, band=BAND) == 6


# ---------------------------------------------------------------- as users start it

@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    facts = {"model": "bert", "task": "squad_v2", "precision": "fp32", "date": "2026-01-01",
             "flags": ["--task", "mnli"]}
    path.write_text(json.dumps(made(LINK, more=facts).as_json()))
    return path


def test_a_plan_is_a_table_for_each_number_of_devices_and_a_row_for_each_setting(calibration, tmp_path, start):
    done = start(sys.executable, "plan.py", "--calibration", calibration, "--devices", "2", "64", "--link", "nvlink-4",
                 "infiniband-ndr", "--target_samples", "1e6", "--price_per_device_hour", "2", "--noise_scale", "50",
                 "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.md").read_text() in done.stdout
    assert "## 2 devices" in done.stdout and "## 64 devices" in done.stdout
    with open(tmp_path / "plan.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = [row for row in rows if row["is_best"] == "True" and row["strategy"] == "ddp"]
    assert [row["devices"] for row in best] == ["2", "64"]
    for row in best:
        assert row["command"].startswith("python bert_baseline.py --task mnli --num_gpus ")
        rate, low, high = (float(row["throughput_samples_per_s" + end]) for end in ("", "_low", "_high"))
        assert low < rate < high
        assert float(row["time_to_samples_s"]) == pytest.approx(1e6 / rate)
        assert float(row["price"]) == pytest.approx(1e6 / rate * 2 * int(row["devices"]) / 3600)
        assert float(row["goodput_samples_per_s"]) == pytest.approx(rate * 66 / 114)
    for name in ("throughput", "memory", "timeline_torch_pipeline_2"):
        assert (tmp_path / "figures" / f"plan_{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("flags, message", [
    (["--devices", "128"], "--devices 128: a batch of 64 has no sample for each of them; use --global_batch_size 128"),
    (["--devices", "0"], "--devices 0: use a number above 0"),
    (["--link", "token-ring"], "--link token-ring: there is no such link"),
    (["--model", "tiny"], "--model: a calibration has its model and data"),
    (["--price_per_device_hour", "-1"], "--price_per_device_hour -1.0: use a number above 0")])
def test_wrong_input_is_one_line(flags, message, calibration, start):
    done = start(sys.executable, "plan.py", "--calibration", str(calibration), *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_model_without_a_recipe_is_one_line(tmp_path, start):
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "n_layers": 1, "dim": 16, "n_heads": 2, '
                                          '"hidden_dim": 16, "vocab_size": 1000}')
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / name).write_bytes((ROOT / "data" / "tiny_bert" / name).read_bytes())
    done = start(sys.executable, "plan.py", "--task", "imdb", "--sample", "--model", tmp_path, "--from_scratch", "true",
                 "--num_gpus", "1", "--output_dir", tmp_path)
    assert done.returncode == 2
    assert "its type, 'distilbert', has no list of layers to measure" in done.stderr


def test_a_plan_is_for_the_model_that_a_run_with_its_flags_trains(tmp_path, start):
    """The Hub's, which the tests do not reach; never the embedded one in its place."""
    done = start(sys.executable, "plan.py", "--num_gpus", "1", "--output_dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --model bert-base-uncased: no such folder") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_gpus, flags, is_made", [
    (None, ["--sample"], False), (4, ["--sample"], False), (2, ["--sample"], True), (None, ["--task", "imdb"], True)])
def test_a_calibration_of_other_devices_or_flags_is_made_again(num_gpus, flags, is_made, tmp_path, monkeypatch):
    here = {"hardware": hardware_name(4), "source_digest": source_digest(), "flags": ["--sample"], **versions()}
    path, commands = tmp_path / "calibration.json", []
    path.write_text(json.dumps(made(more=here).as_json()))

    def calibrate(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", calibrate)
    script.calibrate_here(argparse.Namespace(output_dir=tmp_path, num_gpus=num_gpus), flags)
    assert len(commands) == is_made
    if is_made:
        assert commands[0][-len(flags):] == flags and ("--num_gpus" in commands[0]) == (num_gpus is not None)

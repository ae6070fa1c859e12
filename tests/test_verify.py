"""`verify.py`: equal strategies pass, broken ones are named, and the yardstick is one device's own rounding."""

import csv
import json
import math
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig

from verification import settings
from verification.compare import Computation, differences, limits, without_gradient
from verification.machine import hardware_name
from verification.records import KEY, add_verification, is_proven
from workload.arguments import TensorParallelArguments, parse_arguments
from workload.errors import InputError
from workload.models.tensor_plans import check_shared_tokens, check_tensor_group, fitting_groups

STEPS = ("train_loss", "grad_norm", "micro_batch_squared_norm", "batch_squared_norm")


def write_run(folder, loss=(4.0, 3.0), norm=(2.0, 2.0), weight=1.0, bias=0.0, order="a1") -> Computation:
    """A run of two steps, as far as it is compared."""
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"order_hash": order, "model": {"family": "bert"}}))
    with open(folder / "steps.csv", "w", newline="") as file:
        csv.writer(file).writerows([STEPS, *([*step, step[1] ** 2, step[1] ** 2]
                                             for step in zip(loss, norm, strict=True))])
    (folder / "summary.csv").write_text(f"validation_loss\n{loss[-1]}\n")
    save_file({"dense.weight": torch.full((10, 10), weight), "qa_outputs.bias": torch.full((2,), bias)},
              folder / "model" / "model.safetensors")
    return Computation(folder)


def test_differences_by_hand(tmp_path):
    reference = write_run(tmp_path / "one")
    run = write_run(tmp_path / "two", loss=(4.0, 3.003), norm=(2.02, 2.0), weight=1.001, bias=5.0, order="b2")
    found = differences(run, reference)
    assert found["loss"].relative == pytest.approx(1e-3) and found["loss"].where == "step 2"
    assert found["gradient norm"].relative == pytest.approx(1e-2) and found["gradient norm"].where == "step 1"
    assert found["noise of the batch"].relative == pytest.approx(1e-2), "the square is taken back"
    assert found["weights"].relative == pytest.approx(1e-3, rel=1e-3), "a bias without a gradient does not count"
    assert found["weights"].where == "dense.weight" and found["validation loss"].relative == pytest.approx(1e-3)
    assert found["order of samples"].exceeds(0.0)
    assert "from step 2 on" in found["loss"].in_words(1e-5)


@pytest.mark.parametrize("changed, quantity", [
    ({"loss": (4.0, math.nan)}, "loss"), ({"loss": (4.0,), "norm": (2.0,)}, "gradient norm"),
    ({"norm": (math.inf, 2.0)}, "gradient norm"), ({"weight": math.nan}, "weights")])
def test_what_is_missing_or_no_number_differs(changed, quantity, tmp_path):
    found = differences(write_run(tmp_path / "two", **changed), write_run(tmp_path / "one"))
    assert found[quantity].exceeds(1e9)


@pytest.mark.parametrize("rounding, expected", [(1e-9, 1e-5), (5e-6, 5e-5), (1e-3, 1e-4)])
def test_the_limit_is_ten_times_one_devices_rounding_within_bounds(rounding, expected, tmp_path):
    runs = [write_run(tmp_path / str(number), loss=(4.0, 3.0 * (1 + number * rounding))) for number in range(2)]
    assert limits(runs)["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_biases_before_a_softmax_over_tokens():
    names = [f"bert.encoder.layer.{layer}.{norm}.LayerNorm.bias" for layer in (2, 11, 9) for norm in
             ("attention.output", "output")]
    assert without_gradient([*names, "qa_outputs.bias"]) == {"qa_outputs.bias",
                                                             "bert.encoder.layer.11.output.LayerNorm.bias"}
    assert without_gradient([*names, "classifier.bias"]) == set()


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
def test_settings_fit_the_devices(devices):
    from workload.batches import plan_stages

    batch = settings.MICRO_BATCH_SIZE * settings.micro_batches(devices)
    config = BertConfig()  # 12 heads
    found = settings.settings(devices, 12, True, fitting_groups(config, devices), max_length=128)
    assert len({setting.name for setting in found}) == len(found)
    sizes = {reference.micro_batch_size for reference in settings.references(devices)}
    assert len(sizes) == 3 and all(batch % size == 0 for size in sizes)
    assert {setting.micro_batch_size for setting in found} <= sizes, "each has a reference of its micro-batches"
    for setting in found:
        assert setting.devices == devices and batch % devices == 0
        if "--stages" in setting.flags:
            stages, parts = (int(setting.flags[setting.flags.index(flag) + 1])
                             for flag in ("--stages", "--micro_batches"))
            assert plan_stages(stages, parts, batch, devices) == (stages, parts)
            assert batch // (devices // stages) == parts * settings.MICRO_BATCH_SIZE
        if setting.script == "tensor_parallel.py":
            arguments = parse_arguments(TensorParallelArguments, list(setting.flags))
            group = arguments.tensor_group(devices)
            check_tensor_group("bert", config, ["bert"], group, devices)
            if arguments.sequence_parallel:
                check_shared_tokens(128, 64, group)
    names = {setting.name for setting in found if setting.script == "tensor_parallel.py"}
    if devices == 4:
        kinds = ("tensor parallel", "tensor parallel sequence")
        assert names == {*(f"{kind} x 4" for kind in kinds), *(f"{kind}{end} 2 x 2" for kind in kinds for end in
                                                               ("", " FSDP"))}
    assert ("tensor parallel x 8" not in names) and names, "12 heads cannot be divided by 8"


def test_what_was_verified_need_not_be_again(tmp_path):
    key = dict.fromkeys(KEY, "same") | {"devices": 2}
    entry = key | {"rows": [{"status": "equal"}, {"status": "equal"}]}
    assert not is_proven(tmp_path, **key)
    add_verification(tmp_path, entry, {}, {})
    assert is_proven(tmp_path, **key)
    assert not any(is_proven(tmp_path, **key | {name: "other"}) for name in KEY)
    add_verification(tmp_path, entry | {"rows": [{"status": "equal"}, {"status": "differs"}]}, {}, {})
    assert not is_proven(tmp_path, **key), "the newer of the two counts"
    (tmp_path / "verification.json").write_text("[1")
    with pytest.raises(InputError, match="run verify.py again"):
        is_proven(tmp_path, **key)


def test_a_model_that_cannot_be_cut_has_no_pipelines():
    found = settings.settings(4, None, has_gpus=False)
    assert not any(setting.script in ("pipeline.py", "torch_pipeline.py", "tensor_parallel.py") for setting in found)


@pytest.mark.timeout(700)
def test_strategies_are_proven_and_broken_ones_named(start, slow_lane, tmp_path):
    """Some on two processes; on_gpu.sh runs all settings of one pretended GPU."""
    done = start(sys.executable, "-m", "tests.scripts.verify_mutated", "--output_dir", str(tmp_path), limit_s=650)
    assert done.returncode == 1, done.stdout + done.stderr
    [entry] = json.loads((tmp_path / "verification.json").read_text())["verifications"]
    assert [row["status"] for row in entry["rows"]] == ["equal"] * 3 + ["differs"] * 6, done.stdout
    assert entry["family"] == "bert" and entry["devices"] == 2 and entry["machine"] and entry["links"]
    assert entry["hardware"] == hardware_name(), "as runs name it, without the settings of exact kernels"
    assert [path.name for path in tmp_path.iterdir()] == ["verification.json"], "the runs are gone"
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if ": " in line and line.startswith("  ")}
    for name, quantity in {"clipping_left_to_deepspeed": "gradient norm", "bucket_not_reduced": "weights",
                           "shard_scaled": "gradient norm", "sample_fed_twice": "loss",
                           "dropout_left_on": "loss", "replicated_counted_twice": "gradient norm"}.items():
        assert "differs" in lines[name] and quantity in lines[name], done.stdout
    assert "from step 1 on" in lines["shard_scaled"] and "at bert." in lines["bucket_not_reduced"]


@pytest.mark.parametrize("flags, said", [
    (["--all_tasks", "--model", "tiny"], "leave out --model"), (["--train_file", "a.json"], "give both"),
    (["--task", "squad"], "invalid choice"), (["--num_gpus", "2", "--model", "./nowhere"], "no such folder")])
def test_wrong_input_is_one_line(flags, said, start, tmp_path):
    done = start(sys.executable, "verify.py", *flags, "--output_dir", str(tmp_path))
    assert done.returncode == 2 and said in done.stderr

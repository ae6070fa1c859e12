"""plots.py puts predictions beside measurements where a calibration is of a row's hardware, code, model and data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from comparison.predicted import PREDICTED, SAME, add_predictions, find_calibrations, predicted_chart, predicted_table
from plots import STUDY
from prediction.predict import predict
from prediction.setting import Setting
from tests.shared.calibrations import made

FACTS = dict.fromkeys(SAME, "x") | {"cpu_threads": 1, "max_seq_length": 384}
ROW = FACTS | {"setting": "DDP x 2", "strategy": "ddp", "devices": 2, "replicas": 2, "pipeline_stages": 1,
               "schedule": None, "micro_batches": 4, "micro_batch_size": 2, "throughput_samples_per_s": 1.0,
               "peak_memory_gib": 0.75, "is_dirty": False}


def with_predictions(**changes) -> pd.DataFrame:
    rows = pd.DataFrame([ROW | changes])
    add_predictions(rows, {Path("calibration.json"): made(more=FACTS)})
    return rows


def test_a_row_gets_the_prediction_of_its_setting():
    rows, expected = with_predictions(), predict(made(), Setting("ddp", 2, 4, 2))
    assert rows[PREDICTED["throughput_samples_per_s"]][0] == expected.throughput_samples_per_s
    assert rows[PREDICTED["peak_memory_gib"]][0] == expected.peak_memory_gib
    title, table = predicted_table(rows)
    error = 100 * (expected.throughput_samples_per_s - 1)
    assert title == "### Predicted beside measured" and f"{error:+.1f}" in str(table)
    figure = predicted_chart(rows, "heading", STUDY)
    assert figure is not None
    _, point = figure.axes[0].lines
    assert np.array(point.get_data()).tolist() == [[1.0], [expected.throughput_samples_per_s]]


@pytest.mark.parametrize("changes", [{name: "y"} for name in SAME] + [
    {"cpu_threads": 2}, {"model_sha256": None}, {"strategy": "zero3_offload"}, {"micro_batch_size": None},
    {"devices": 8, "replicas": 8}], ids=str)
def test_nothing_is_predicted_for_what_was_not_calibrated(changes):
    rows = with_predictions(**changes)
    assert rows[PREDICTED["throughput_samples_per_s"]].isna().all()
    assert predicted_table(rows) == [] and predicted_chart(rows, "heading", STUDY) is None


def test_threads_of_a_host_with_gpus_do_not_count():
    assert with_predictions(cpu_threads=pd.NA)[PREDICTED["throughput_samples_per_s"]].notna().all()


def test_calibrations_are_found_below_and_beside_a_folder_and_a_torn_one_is_named(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "study", tmp_path / "study" / "part"):
        folder.mkdir(exist_ok=True)
        (folder / "calibration.json").write_text(json.dumps(made().as_json()))
    assert len(find_calibrations(tmp_path / "study")) == 3
    (tmp_path / "calibration.json").write_text('{"facts')
    assert len(find_calibrations(tmp_path / "study")) == 2
    assert "calibration.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("changes, said", [
    ({"hardware": "NVIDIA H100"}, "it was made for hardware x"), ({"model_sha256": "y"}, "made for model_sha256 x"),
    ({"cpu_threads": 2}, "made for cpu_threads 1")])
def test_a_calibration_for_something_else_is_named(changes, said, capsys):
    with_predictions(**changes)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("calibration.json predicts no run here") and said in line


def test_without_a_calibration_there_are_no_columns():
    rows = pd.DataFrame([ROW])
    add_predictions(rows, {})
    assert not {*PREDICTED.values()} & {*rows} and predicted_table(rows) == []

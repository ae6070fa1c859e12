"""plots.py says above each table whether its rows were verified, when, and which were not."""

import json

import pandas as pd
import pytest

from comparison.verified import find_verifications, verified

SAME = {"source_digest": "aaa", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8",
        "hardware": "CPU X", "family": "bert"}
ROWS = [{"strategy": "ddp", "devices": "2", "pipeline_stages": "1", "schedule": "", "status": "equal", "reason": ""},
        {"strategy": "pipeline", "devices": "2", "pipeline_stages": "2", "schedule": "1f1b", "status": "differs",
         "reason": "loss 1.0e-03 from step 2 on"}]
ENTRY = {**SAME, "date": "2026-11-25", "devices": 2, "rows": ROWS}


def row(name: str, strategy: str, devices: int = 2, stages: float = 1.0, schedule: str | None = None) -> dict:
    return {**SAME, "setting": name, "strategy": strategy, "devices": devices, "pipeline_stages": stages,
            "schedule": schedule}


ONE, DDP = row("DDP x 1", "ddp", devices=1), row("DDP x 2", "ddp")
PIPELINE, FSDP = row("pipeline x 2", "pipeline", stages=2.0, schedule="1f1b"), row("FSDP x 2", "fsdp")


@pytest.mark.parametrize("rows, said", [
    ([ONE, DDP], "on 2026-11-25, without dropout, with a model of this family: every row trains as one device does."),
    ([ONE, DDP, PIPELINE], "all but pipeline x 2 (differs: loss 1.0e-03 from step 2 on)."),
    ([DDP, FSDP], "all but FSDP x 2 (not among the settings that were run)."),
    ([row("DDP x 4", "ddp", devices=4)], "all but DDP x 4 (not among the settings that were run)."),
    ([DDP | {"source_digest": "bbb"}], "Not verified"), ([DDP | {"hardware": "NVIDIA H100"}], "Not verified"),
    ([DDP | {"family": "gpt2"}], "Not verified"), ([DDP | {"torch": "2.11.0"}], "Not verified"),
    ([DDP | {"source_digest": float("nan")}], "Not verified")])
def test_a_sentence_for_each_table(rows, said):
    assert said in verified(pd.DataFrame(rows), [ENTRY])


def test_tensor_groups_of_two_sizes_are_two_settings():
    four, two = ({**row(name, "tensor_parallel", devices=4), "replicas": replicas}
                 for name, replicas in (("tensor parallel x 4", 1), ("tensor parallel x 2 x 2 replicas", 2)))
    proven = [{"strategy": "tensor_parallel", "devices": "4", "replicas": replicas, "pipeline_stages": "1",
               "schedule": "", "status": status, "reason": "loss"}
              for replicas, status in (("1", "differs"), ("2", "equal"))]
    said = verified(pd.DataFrame([four, two]), [ENTRY | {"devices": 4, "rows": proven}])
    assert "all but tensor parallel x 4 (differs: loss)." in said


def test_the_newest_verification_of_a_row_counts():
    mended = ENTRY | {"date": "2026-11-26", "rows": [ROWS[1] | {"status": "equal", "reason": ""}]}
    for entries in ([ENTRY, mended], [mended, ENTRY]):
        assert "every row" in verified(pd.DataFrame([PIPELINE]), entries)


def test_verifications_are_found_below_and_beside_a_folder(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "study", tmp_path / "study" / "part"):
        folder.mkdir(exist_ok=True)
        (folder / "verification.json").write_text(json.dumps({"verifications": [ENTRY]}))
    assert len(find_verifications(tmp_path / "study")) == 3
    (tmp_path / "verification.json").write_text('{"verifi')
    assert len(find_verifications(tmp_path / "study")) == 2
    assert "verification.json cannot be read" in capsys.readouterr().err

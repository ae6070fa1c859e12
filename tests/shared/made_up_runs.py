"""Made-up run folders with known numbers, for the tests of plots.py and of comparison/."""

import json

import numpy as np
import pandas as pd

import plots
from comparison.rows import compare
from comparison.runs import find_runs

JOB = {"task": "squad_v2", "model": "tiny", "global_batch_size": 32, "precision": "fp32"}
JOB |= {"max_seq_length": 128, "cpu_threads": 1, "workload": "00e1"}
# As DeepSpeed 0.19.8 writes it.
SUMMARY = """\
| tuning_space   |   num_experiments |   best_metric_val | best_exp_name    |
|:---------------|------------------:|------------------:|:-----------------|
| z0             |                 2 |           232.835 | z0_gas4_tmbspg8  |
| z1             |                 2 |           286.114 | z1_gas1_tmbspg32 |
| global         |                 4 |           286.114 | z1_gas1_tmbspg32 |

Tuning completed in 0:08:06.518227. Total number of experiments: 4."""


def write_run(folder, strategy="ddp", devices=1, throughput=50.0, status="finished", curves=False, **values):
    """A run folder; a value of None leaves its column out."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status}), encoding="utf-8")
    piped = "pipeline" in strategy
    shape = {"pipeline_stages": devices if piped else 1, "replicas": 1 if piped else devices}
    shape |= {"micro_batches": 4 if piped else 1, "micro_batch_size": 8 if piped else 32 // devices}
    measured = {"runtime_s": 9600 / throughput, "throughput_samples_per_s": throughput, "seed": 0}
    row = {"strategy": strategy, "devices": devices, **JOB, **shape, **measured, **values}
    row |= {"complete": row.pop("complete", "yes")}  # last
    row = {column: value for column, value in row.items() if value is not None}
    pd.DataFrame([row]).to_csv(folder / "summary.csv", index=False)
    if curves:
        samples = 32 * np.arange(1, 31)
        lines = pd.DataFrame({"samples": samples, "elapsed_s": samples / throughput})
        lines.assign(train_loss=5 - samples / 400).to_csv(folder / "steps.csv", index=False)
        lines[9::10].assign(validation_loss=[4, 3, 2.5]).to_csv(folder / "evaluations.csv", index=False)
    return folder


def write_seeds(root, name, throughputs, strategy="ddp", devices=1, **values):
    """A run for each throughput, with seeds 0, 1, ...; a dictionary maps seeds to throughputs."""
    by_seed = throughputs if isinstance(throughputs, dict) else dict(enumerate(throughputs))
    for seed, throughput in by_seed.items():
        write_run(root / f"{name}{seed}", strategy, devices, throughput, seed=seed, **values)


def rows_of(root):
    """The rows that plots.py would show for the runs in a folder, by the name of their setting."""
    rows, _ = compare(find_runs(root, plots.STUDY), plots.STUDY)
    return rows.set_index("setting")


def write_tuner(folder):
    """A tuner's results with four trials; our record of one of them pretends to be finished."""
    for name in ("z0_gas4_tmbspg8", "z0_gas1_tmbspg32", "z1_gas4_tmbspg8", "z1_gas1_tmbspg32"):
        trial = write_run(folder / name / "run", "zero1", 2, throughput=999.0).parent
        settings = {"zero_optimization": {"stage": int(name[1])},
                    "autotuning": {"enabled": True, "metric_path": f"{folder / name}/metrics.json"}}
        (trial / "ds_config.json").write_text(json.dumps(settings))
        (trial / "exp.json").write_text(json.dumps({"name": name, "ds_config": settings}))
        (trial / "metrics.json").write_text(json.dumps({"fwd": 2e4, "latency": 3e5, "throughput": 286.114}))
    (folder / "summary.txt").write_text(SUMMARY)
    (folder / "ds_config_optimal.json").write_text('{"zero_optimization": {"stage": 1}}')


def table_below(text, heading):
    """The cells of the first Markdown table below a heading, row by row."""
    parts = text.split(f"\n## {heading}\n\n")[1].split("\n\n")
    lines = next(part for part in parts if part.startswith("|")).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "--" not in line]

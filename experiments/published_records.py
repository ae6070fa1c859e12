"""Recompute the published numbers of the BERT study from its raw records, and apply its formulas to a run of ours.

    python -m experiments.published_records --records FOLDER      # baseline_metrics.json, pipeline_metrics_*.json
    python -m experiments.published_records --run results/RUN     # steps.csv and summary.csv of one run

The records are in DannyMeb/BERT-Parallelism-Efficiency, folder metrics/. docs/notes/published_results.md explains the
tables.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workload.errors import InputError, one_line_errors
from workload.flag_groups import Parser


class Published(NamedTuple):
    """A published run, with facts that its record lacks."""

    name: str
    file: str
    devices: int
    global_batch: int  # samples per optimizer step
    counted: int  # samples per step in the published throughput
    unrecorded_steps: int  # steps before the Trainer's first log line, which recorded no loss


PUBLISHED = [
    Published("baseline, 4 GPUs", "baseline_metrics.json", 4, 64, 16, 0),
    Published("pipeline, 2 GPUs", "pipeline_metrics_2_stages.json", 2, 64, 32, 50),
    Published("pipeline, 4 GPUs", "pipeline_metrics_4_stages.json", 4, 128, 64, 50),
]
DIVISOR = 16  # samples per device and forward pass in all three published runs


def stats_efficiency(losses: pd.Series, divisor: int = DIVISOR) -> float:
    """The published statistical efficiency: the mean over steps of |loss[t-1] - loss[t]| / divisor."""
    return losses.diff().abs().mean() / divisor


def zero_share(losses: pd.Series) -> float:
    """Share (0 to 1) of the steps whose recorded loss equals the previous one."""
    return (losses.diff().iloc[1:] == 0).mean()


def net_share(losses: pd.Series) -> float:
    """|first - last loss| over the sum of all |differences|: 1 where the loss only falls, near 0 where it jitters."""
    total = losses.diff().abs().sum()
    return abs(losses.iloc[0] - losses.iloc[-1]) / total if total else float("nan")


def held(losses: pd.Series, every: int, average: bool = True) -> pd.Series:
    """The losses as a record taken at every step sees them if they are logged only every `every` steps.

    The value is held from one log line to the next. Before the first there is none, so the result is `every` steps
    shorter. average=True logs the mean since the last line, as transformers.Trainer does; False the latest step's loss.
    """
    blocks = losses.reset_index(drop=True).groupby(lambda step: step // every)
    logged = blocks.mean() if average else blocks.last()
    return logged.repeat(every).iloc[:max(len(losses) - every, 0)].reset_index(drop=True)


def logging_table(losses: pd.Series, divisor: int = DIVISOR) -> pd.DataFrame:
    """The published statistical efficiency of one curve that is logged in several ways, and its change."""
    curves = {"every step": losses}
    for every in (10, 50):
        if len(losses) > 2 * every:  # otherwise the logged value never changes
            curves[f"latest of {every}, held"] = held(losses, every, average=False)
            curves[f"mean of {every}, held"] = held(losses, every)
    whole = stats_efficiency(losses, divisor)
    return pd.DataFrame({name: {"stats efficiency": stats_efficiency(curve, divisor),
                                "change %": 100 * (stats_efficiency(curve, divisor) / whole - 1),
                                "zero differences %": 100 * zero_share(curve)} for name, curve in curves.items()}).T


def read_record(path: Path) -> dict:
    """A published record with its lists as Series.

    Raises:
        InputError: the record is missing or incomplete.
    """
    try:
        record = json.loads(path.read_text())
        record["gpu_utilization"] = record.get("gpu_utilization") or record.pop("gpu_utilizations")  # two spellings
        lists = {key: pd.Series(record[key], dtype=float) for key in ("losses", "throughputs", "gpu_utilization")}
        return lists | {key: float(record[key]) for key in ("total_runtime", "average_statistical_efficiency")}
    except KeyError as error:
        raise InputError(f"{path}: no {error} in it; this is not a published record") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "not a published record"
        raise InputError(f"{path}: {reason}") from None


def record_tables(records: dict[Published, dict]) -> dict[str, pd.DataFrame]:
    """The tables behind all figures that the document quotes from the records; rows are runs."""
    columns, loss, time, gpu = {}, {}, {}, {}
    for run, record in records.items():
        losses, throughputs, use = (record[key] for key in ("losses", "throughputs", "gpu_utilization"))
        efficiency, runtime = stats_efficiency(losses), record["total_runtime"]
        columns[run.name] = {"runtime s": runtime, "throughput": throughputs.mean(), "validation loss": losses.mean(),
                             "GPU util %": use.mean(), "stats efficiency": efficiency,
                             "in the record": record["average_statistical_efficiency"],
                             "goodput": throughputs.mean() * efficiency}
        loss[run.name] = {"zero differences %": 100 * zero_share(losses), "first": losses.iloc[0],
                          "last": losses.iloc[-1], "net fall %": 100 * net_share(losses),
                          "mean of last fifth": losses.iloc[-len(losses) // 5:].mean()}
        timed = (run.counted / throughputs).sum()
        steps = len(losses) + run.unrecorded_steps
        true = steps * run.global_batch / runtime
        time[run.name] = {"steps": steps, "global batch": run.global_batch, "step timer s": timed,
                          "outside it %": 100 * (1 - timed / runtime), "true samples/s": true,
                          "recorded steps only": len(losses) * run.global_batch / runtime,
                          "per GPU": true / run.devices}
        spread = use.describe(percentiles=[0.05, 0.5, 0.95]).drop("count")
        gpu[run.name] = {**spread, "exactly 100": 100 * (use == 100).mean(), "exactly 0": 100 * (use == 0).mean()}
    parts = {"The published columns, recomputed": columns, "Recorded loss": loss, "Time and samples": time,
             "GPU utilization, %; share of records at exactly 100 and 0, %": gpu}
    tables = {title: pd.DataFrame(part).T for title, part in parts.items()}
    return tables | {"The baseline's loss, as if logged less often": logging_table(records[PUBLISHED[0]]["losses"])}


def read_run(folder: Path) -> tuple[pd.DataFrame, pd.Series]:
    """steps.csv and the row of summary.csv.

    Raises:
        InputError: a file is missing or empty, or lacks a needed column.
    """
    needed = {"steps.csv": ["train_loss", "step_s"],
              "summary.csv": ["devices", "replicas", "global_batch_size", "micro_batch_size", "runtime_s", "samples",
                              "throughput_samples_per_s"]}
    tables = []
    for name, columns in needed.items():
        try:
            table = pd.read_csv(folder / name)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / name}: {getattr(error, 'strerror', None) or error}") from None
        bad = [c for c in columns if c not in table or table[c].dropna().empty or table[c].dtype.kind not in "if"]
        if bad:
            raise InputError(f"{folder / name}: no numbers in {', '.join(bad)}")
        tables.append(table)
    return tables[0], tables[1].iloc[0]


def run_tables(steps: pd.DataFrame, summary: pd.Series) -> dict[str, pd.DataFrame]:
    """Tables (a), (b) and (c) of the document's section "Shown by our own runs"."""
    micro_batch, replica_batch = summary.micro_batch_size, summary.global_batch_size / summary.replicas
    utilization = {name: summary.get(name) for name in ("gpu_utilization_pct", "cpu_utilization_pct", "mfu_pct")}
    throughput = {  # the published two are means of a rate over steps, as their authors average
        "published, baseline: one replica's samples / step": (replica_batch / steps.step_s).mean(),
        "published, pipeline: micro-batch x devices / step": (micro_batch * summary.devices / steps.step_s).mean(),
        "all samples / measured wall time": summary.throughput_samples_per_s,
        "all samples / whole runtime": summary.samples / summary.runtime_s,
    }
    return {
        "(a) One loss curve, logged in several ways": logging_table(steps.train_loss.dropna(), int(micro_batch)),
        "(b) Utilization beside MFU, %": pd.DataFrame([utilization], index=["run"]).astype(float),
        "(c) Throughput, samples/s": pd.DataFrame({"samples/s": throughput}),
    }


def main() -> None:
    parser = Parser()
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="the three published JSON files")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run's folder")
    arguments = parser.parse_args()
    if arguments.records is None and arguments.run is None:
        parser.error("nothing to do: give --records FOLDER, --run results/RUN or both")
    tables = {}
    if arguments.records is not None:
        tables |= record_tables({run: read_record(arguments.records / run.file) for run in PUBLISHED})
    if arguments.run is not None:
        tables |= run_tables(*read_run(arguments.run))
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(na_rep='not measured', float_format=lambda value: f'{value:.5g}')}")


if __name__ == "__main__":
    with one_line_errors():
        main()

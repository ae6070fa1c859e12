"""Compare finished training runs: tables and figures.

    python plots.py                                  # every run below results/
    python plots.py results/reference                # only the runs below this folder
    python plots.py results --output_dir report      # write somewhere else
    python plots.py --published                      # with the studies' published figures beside ours
    python plots.py --mix_versions                   # runs of different code and library versions in one table
    python plots.py --price_per_device_hour 2.5      # what each run cost, and what its target cost

Prints the tables and writes comparison.md, comparison.csv and figures/*.png, autotuning.csv if DeepSpeed's autotuner
left its results, and report.html: one page with all of it, to open in a browser or to share. Runs that differ only in
their seed share a row. Rows that are not comparable (another task, batch, code, ...) share neither table nor figure,
except for weak scaling, where the batch grows with the devices. The project's own results/reference is left out unless
that folder, or one in it, is given.

This file defines what is compared: metrics, tables, figures, names and colours. comparison/ defines how.
"""

import math
from pathlib import Path

from comparison.autotuning import find_tuners
from comparison.costs import add_costs, with_costs
from comparison.predicted import add_predictions, find_calibrations
from comparison.published import published_parts
from comparison.report import write_comparison
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.study import Curve, Metric, Study, Target
from comparison.verified import find_verifications
from measurement.trackers import send_finished
from workload.argument_checks import check_tracker
from workload.errors import InputError
from workload.flag_groups import Parser
from workload.terminal import print_anywhere

PUBLISHED = Path(__file__).resolve().parent / "results" / "published"
REFERENCE = PUBLISHED.with_name("reference")

GPU_UTILIZATION = Metric("gpu_utilization_pct", "GPU utilization", "%")
RUNS = Metric("runs", "runs")
VALIDATION_LOSS = Metric("validation_loss", "validation loss")
ACCURACY = Metric("accuracy", "accuracy", "%")
EPOCH_TIME = Metric("epoch_s", "average epoch time", "s")

# Title -> metrics of a table. The first table keeps metrics that no run could measure, the others leave them out. Each
# metric has its own figure; times to a target have one per target.
TABLES = {
    "Result": [
        Metric("runtime_s", "runtime", "s"),
        Metric("throughput_samples_per_s", "throughput", "samples/s"),
        VALIDATION_LOSS,
        GPU_UTILIZATION,
        Metric("statistical_efficiency", "statistical efficiency"),
        Metric("goodput_samples_per_s", "goodput", "samples/s"),
        RUNS,
    ],
    "Quality and speedup": [
        Metric("exact_match", "exact match", "%"),
        Metric("f1", "F1", "%"),
        ACCURACY,
        Metric("accuracy_mismatched", "accuracy, mismatched", "%"),
        Metric("perplexity", "perplexity"),
        Metric("speedup", "speedup", "x 1 device"),
        EPOCH_TIME,
        Metric("throughput_tokens_per_s", "token rate", "tokens/s"),
    ],
    "Gradient noise": [
        Metric("noise_scale_samples", "noise scale", "samples"),
        Metric("sampled_steps", "sampled steps"),
        Metric("effective_sampled_steps", "effective sampled steps"),
        Metric("noise_scale_negative_pct", "sampled steps of negative estimate", "%"),
    ],
    "Time to quality": [
        Metric("target", "target"),
        Metric("reached", "runs that reached it"),
        Metric("time_to_target_s", "time to target", "s"),
        Metric("samples_to_target", "samples to target"),
    ],
    "Use of the hardware": [
        Metric("mfu_pct", "MFU", "%"),
        Metric("hfu_pct", "HFU", "%"),
        GPU_UTILIZATION,
        Metric("cpu_utilization_pct", "CPU utilization", "%"),
        Metric("other_load_pct", "CPU load of others", "%"),
        Metric("steal_pct", "CPU steal", "%"),
        Metric("throttled_pct", "throttled", "%"),
        Metric("power_w", "power", "W"),
        Metric("energy_j_per_1000_samples", "energy per 1,000 samples", "J"),
        Metric("peak_memory_gib", "peak memory", "GiB"),
    ],
    "Where a pipeline's step goes": [
        Metric("bubble_pct", "bubble measured", "%"),
        Metric("bubble_sd_pct", "its SD over steps", "%"),
        Metric("bubble_schedule_pct", "bubble by the schedule for equal stages", "%"),
        Metric("imbalance_pct", "imbalance", "%"),
        Metric("forward_s_per_step", "forward", "s/step"),
        Metric("backward_s_per_step", "backward", "s/step"),
        Metric("send_s_per_step", "send", "s/step"),
        Metric("receive_s_per_step", "receive", "s/step"),
        Metric("reduce_s_per_step", "reduce", "s/step"),
        Metric("optimizer_s_per_step", "optimizer", "s/step"),
    ],
    "Communication": [
        Metric("collective_s_per_step", "collective communication", "s/step"),
        Metric("collective_mib_per_step", "collective communication", "MiB/step"),
        Metric("collective_wire_mib_per_step", "sent for it by each device", "MiB/step"),
        Metric("point_to_point_s_per_step", "point-to-point communication", "s/step"),
        Metric("point_to_point_mib_per_step", "point-to-point communication", "MiB/step"),
        Metric("exposed_communication_s_per_step", "exposed communication", "s/step"),
        Metric("host_cpu_s_per_step", "host CPU time", "s/step"),
        Metric("device_s_per_step", "device time", "s/step"),
        Metric("data_s_per_step", "data loading", "s/step"),
    ],
}

STUDY = Study(
    tables=TABLES,
    # Strong and weak scaling each get a table with a row per setting, and pivots of devices by strategy.
    scaling=[
        Metric("devices", "devices"),
        Metric("global_batch_size", "global batch", "samples"),
        EPOCH_TIME,
        Metric("epoch_speedup", "speedup of epochs", "T_1 / T_N"),
        Metric("parallel_efficiency_pct", "parallel efficiency", "%"),
        ACCURACY,
        VALIDATION_LOSS,
    ],
    pivots={
        "global samples/s, x one device of the same strategy": "own_speedup",
        "global samples/s, x DDP on one device": "speedup",
    },
    # Shown beside published figures only: the results of a study's own formulas on our runs.
    published_metrics=[
        Metric("published_stats_efficiency", "published statistical efficiency", "loss/sample"),
        Metric("published_goodput", "published goodput", "loss/s"),
    ],
    # Published column -> ours beside it. Published speedups are relative to the same strategy; their batch may grow.
    published_beside={
        "speedup": [
            Metric("own_speedup", "samples/s, same global batch,", "x 1 device of the strategy"),
            Metric("weak_own_speedup", "samples/s, same batch per device,", "x 1 device of the strategy"),
        ]
    },
    published_tasks={
        "bert_squad": "squad_v2",
        "elsewhere": "squad_v2",
        "imdb_scaling": "imdb",
        "autotuning": "mnli",
        "gpt2_oscar": "oscar",
    },
    # Percent. Smaller changes are nobody's reason to choose a strategy; docs/metrics.md argues for these.
    smallest_changes=dict.fromkeys(
        ["validation_loss", "perplexity", "exact_match", "f1", "accuracy", "accuracy_mismatched"], 0.1),
    # Each curve gives a figure over each of its axes.
    curves=[
        Curve("steps.csv", "train_loss", "training loss"),
        Curve("evaluations.csv", "validation_loss", "validation loss"),
        Curve("evaluations.csv", "f1", "F1 (%)"),
        Curve("evaluations.csv", "accuracy", "accuracy (%)"),
        Curve("evaluations.csv", "perplexity", "perplexity"),
        Curve("epochs.csv", "epoch_s", "training time per epoch (s)", axes=("epoch",)),
    ],
    axes={"samples": "samples", "elapsed_s": "time (s)", "epoch": "epoch"},
    targets={
        "target_f1": Target("f1", "F1 ≥ {:g} %"),
        "target_loss": Target("validation_loss", "validation loss ≤ {:g}"),
    },
    # Name and colour, in the order of the rows. Colours are from Okabe and Ito's palette for colour-blind readers, with
    # shades for the variants of a strategy.
    strategies={
        "ddp": ("DDP", "#0072B2"),
        "pipeline": ("pipeline", "#D55E00"),
        "zero0": ("ZeRO-0", "#9FE0CC"),
        "zero1": ("ZeRO-1", "#4DC7A0"),
        "zero2": ("ZeRO-2", "#009E73"),
        "zero3": ("ZeRO-3", "#00614A"),
        "zero3_hpz": ("ZeRO-3 hpZ in groups of", "#5A8F29"),
        "zero1_offload": ("ZeRO-1 offload", "#F0E442"),
        "zero2_offload": ("ZeRO-2 offload", "#BFB41F"),
        "zero3_offload": ("ZeRO-3 offload", "#7D760F"),
        "fsdp": ("FSDP", "#CC79A7"),
        "fsdp_no_reshard": ("FSDP no reshard", "#8F4A70"),
        "fsdp_bf16_gather": ("FSDP bf16 gather", "#E8C3D8"),
        "fsdp_no_reshard_bf16_gather": ("FSDP no reshard, bf16 gather", "#5C2F48"),
        "fsdp_hybrid": ("FSDP in groups of", "#7A1FA2"),
        "fsdp_no_reshard_hybrid": ("FSDP no reshard, in groups of", "#5B177A"),
        "fsdp_bf16_gather_hybrid": ("FSDP bf16 gather, in groups of", "#A86BC4"),
        "fsdp_no_reshard_bf16_gather_hybrid": ("FSDP no reshard, bf16 gather, in groups of", "#3C0F51"),
        "tensor_parallel": ("tensor parallel", "#A6761D"),
        "tensor_parallel_sequence": ("tensor and sequence parallel", "#6B4C12"),
        "tensor_parallel_fsdp": ("tensor parallel, FSDP", "#D9B779"),
        "tensor_parallel_sequence_fsdp": ("tensor and sequence parallel, FSDP", "#8C7B57"),
        "data_parallel": ("DataParallel", "#E69F00"),
        "torch_pipeline": ("torch pipeline", "#56B4E9"),
        "hf_trainer": ("HF Trainer", "#000000"),
        "hf_trainer_zero1": ("HF Trainer ZeRO-1", "#333333"),
        "hf_trainer_zero2": ("HF Trainer ZeRO-2", "#666666"),
        "hf_trainer_zero3": ("HF Trainer ZeRO-3", "#999999"),
    },
    # Columns that are equal within a table, with their wording in its heading. The code and the versions are there only
    # if tables differ in them; see `Study.mixing_versions`. All three versions count for every row: whether a library
    # has a part in a strategy is not for a table to guess.
    group={
        "task": "{}",
        "model": "{}",
        "global_batch_size": "global batch {}",
        "precision": "{}",
        "max_seq_length": "length {}",
        "cpu_threads": "{} CPU thread(s) a process",
        "hardware": "{}",
        "workload": "workload {}",
        "code": "code {}",
        "torch": "torch {}",
        "transformers": "transformers {}",
        "deepspeed": "deepspeed {}",
    },
    # Further columns that make a row of its own, added to its name only if rows would share the name without them.
    details={
        "micro_batches": "{} micro-batch(es)",
        "micro_batch_size": "micro-batch size {}",
        "devices": "{} device(s)",
        "nodes": "{} node(s)",
        "pipeline_stages": "{} stage(s)",
        "schedule": "{}",
        "replicas": "{} replica(s)",
        "tuned_by": "tuned by {}",
        "measure": "--measure {}",
        "peak_tflops": "peak {} TFLOPS",
        "deepspeed_settings": "{}",  # only the settings that differ
        "script_digest": "script {}",
    },
    autotuning=[
        Metric("throughput_samples_per_s", "throughput", "samples/s"),
        Metric("tuned_by", "tuned by"),
        Metric("zero_stage", "ZeRO stage"),
        Metric("micro_batch_size", "micro-batch size"),
        Metric("micro_batches", "micro-batches a step"),
    ],
)


def main() -> None:
    print_anywhere(errors="replace")  # one character for each that cannot be shown, so that tables stay aligned
    parser = Parser()
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder with runs")
    parser.add_argument("--output_dir", type=Path, help="where to write (default: the results folder)")
    parser.add_argument("--published", action="store_true", help="also print the studies' published figures")
    parser.add_argument("--mix_versions", action="store_true",
                        help="let runs of different code, torch, transformers or deepspeed share a table; "
                             "its heading and its rows say which")
    parser.add_argument("--price_per_device_hour", type=float, help="in any currency, for what runs cost")
    parser.add_argument("--grams_co2_per_kwh", type=float, help="of the electricity, for what runs emitted")
    parser.add_argument("--report_to", choices=["tensorboard"],
                        help="also send every run's rows to this tracker, unless that was done")
    options = parser.parse_args()
    for name in ("price_per_device_hour", "grams_co2_per_kwh"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            parser.error(f"--{name} {value}: use a number above 0")
    if not options.results.is_dir():
        parser.error(f"there is no folder {options.results}")
    try:
        if options.report_to:
            check_tracker(options.report_to)
    except InputError as error:
        parser.error(str(error))
    asked = options.price_per_device_hour, options.grams_co2_per_kwh
    study = with_costs(STUDY.mixing_versions() if options.mix_versions else STUDY, *asked)
    runs, tuners = find_runs(options.results, study, REFERENCE), find_tuners(options.results, REFERENCE)
    if not runs:
        parser.error(f"no finished run to compare in {options.results}")
    add_costs(runs, *asked)
    rows, members = compare(runs, study)
    add_predictions(rows, find_calibrations(options.results))
    published = published_parts(PUBLISHED, rows, study) if options.published else []
    output = options.output_dir or options.results
    try:
        text, figures = write_comparison(rows, members, output, study, tuners, published,
                                         find_verifications(options.results))
    except OSError as error:
        parser.error(f"cannot write to {output}: {error}")
    try:
        print(text)
        print(f"Wrote report.html, comparison.md, comparison.csv and {figures} figures (figures/*.png) to {output}",
              flush=True)
    except OSError as error:
        parser.error(f"the tables are in {output}, but cannot be printed ({error.strerror})")
    if options.report_to:
        sent = send_finished(options.report_to, {run.folder: run.description.get("flags", {}) for run in runs})
        print(f"Sent {sent} run{'s' * (sent != 1)} to {options.report_to}; tensorboard --logdir {options.results}")


if __name__ == "__main__":
    main()

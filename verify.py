"""Prove on this machine that every strategy trains as one device does, before anything is timed.

    python verify.py --num_gpus 4                                      # the embedded model and sample
    python verify.py --num_gpus 4 --model bert-base-uncased --train_file my.json --eval_file my_dev.json
    python verify.py --num_gpus 2 --all_tasks                          # imdb, mnli and oscar as well

First come the machine and its links. Then every strategy and setting that fits trains some steps in fp32, without
dropout, with clipping active and batches of unequal length. Its losses, gradient norms, noise, final weights and order
of samples must be those of one device, up to ten times that device's own rounding. The outcome goes to
verification.json in the results folder, and plots.py states it above its tables. The exit code is 0 only if all agree.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from measurement.environment import source_digest, versions
from verification import settings
from verification.compare import Computation
from verification.machine import describe_machine, hardware_name, machine_lines
from verification.proof import EQUAL, Proof, Row, measured
from verification.records import NAME, add_verification, is_proven, read_verifications, verification
from workload.arguments import Arguments, parse_arguments
from workload.errors import one_line_errors
from workload.flag_groups import Parser
from workload.launch.gpus import use_cpu, visible_gpus
from workload.launch.start import devices_asked_for
from workload.models.families import FAMILIES
from workload.models.loading import TINY
from workload.models.tensor_plans import fitting_groups
from workload.tasks.registry import TASKS, open_task
from workload.tasks.task import Task

LENGTH = 128  # tokens
TRAIN_EXAMPLES = 2000  # of the user's file, which may be large
SHOWN = ("loss", "gradient norm", "weights")


def parse() -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("--num_gpus", type=int, help="devices (default: all visible GPUs; without GPUs, 2 processes)")
    parser.add_argument("--device", choices=["cpu"], help="cpu: CPU processes although there are GPUs")
    parser.add_argument("--task", choices=list(TASKS), default="squad_v2", help="(default: %(default)s)")
    parser.add_argument("--all_tasks", action="store_true", help="all tasks, with their embedded models and samples")
    parser.add_argument("--model", help="Hub name or local folder (default: the embedded small model)")
    parser.add_argument("--train_file", help="training data (default: the embedded sample)")
    parser.add_argument("--eval_file", help="evaluation data (default: the embedded sample)")
    parser.add_argument("--max_seq_length", type=int, default=LENGTH, help="tokens in a sample (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("results"),
                        help="where verification.json goes (default: %(default)s)")
    parser.add_argument("--skip_verified", action="store_true",
                        help="do nothing for a task that was verified already, with the same code, versions, hardware, "
                             "family of models and devices")
    parser.add_argument("--limit_s", type=float, default=300.0,
                        help="a run that takes longer counts as hanging (default: %(default)s)")
    options = parser.parse_args()
    if options.all_tasks and (options.model or options.train_file or options.eval_file):
        parser.error("--all_tasks uses the embedded models and samples; leave out --model and the files")
    if bool(options.train_file) != bool(options.eval_file):
        parser.error("--train_file and --eval_file belong together; give both")
    return options


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the current run too
    options = parse()
    if options.device == "cpu":
        use_cpu()  # all runs inherit it
    devices = devices_asked_for(options.num_gpus, without_gpus=2)
    machine = describe_machine(options.num_gpus, str(options.output_dir))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    read_verifications(options.output_dir)  # a file that cannot be read is found now
    tasks = {task: flags_of(task, options) for task in (TASKS if options.all_tasks else [options.task])}
    opened = {task: open_task(parse_arguments(Arguments, flags)) for task, flags in tasks.items()}  # or one error
    if options.skip_verified:
        tasks = {task: flags for task, flags in tasks.items()
                 if not is_proven(options.output_dir, source_digest=source_digest(), **versions(),
                                  hardware=hardware_name(devices), family=opened[task].config.model_type, task=task,
                                  devices=devices)}
        if not tasks:
            print(f"Verified already, on {devices} device{'s' * (devices > 1)}: {options.output_dir / NAME}")
            sys.exit(0)
    print(*machine_lines(machine), sep="\n", flush=True)
    links = measured(devices, "verification.links", quiet=False) if devices > 1 else {}
    all_agree = True
    for task, flags in tasks.items():
        with tempfile.TemporaryDirectory(prefix=".verification-", dir=options.output_dir) as folder:
            entry = prove(opened[task], Proof(Path(folder), devices, tuple(flags), options.limit_s))
        written = add_verification(options.output_dir, entry, machine, links)
        others = [row["name"] for row in entry["rows"] if row["status"] != EQUAL]
        all_agree = all_agree and not others
        count = len(entry["rows"])
        print(f"All {count} settings train {task} as one device does." if not others else
              f"{len(others)} of {count} settings do not train {task} as one device does: {', '.join(others)}.",
              f"Wrote {written}", flush=True)
    sys.exit(0 if all_agree else 1)


def flags_of(task: str, options: argparse.Namespace) -> list[str]:
    """The flags of every run that say what is trained."""
    flags = ["--task", task, "--model", options.model or TINY, "--max_seq_length", str(options.max_seq_length)]
    return flags + (["--train_file", options.train_file, "--eval_file", options.eval_file, "--max_train_examples",
                     str(TRAIN_EXAMPLES)] if options.train_file else ["--sample"])


def prove(task: Task, proof: Proof) -> dict[str, Any]:
    """Run all settings of a task, with a line for each; returns the entry for verification.json."""
    config, family = task.config, FAMILIES.get(task.config.model_type)
    references = settings.references(proof.devices)
    groups = fitting_groups(config, proof.devices) if family and family.tensor_plan else []
    wanted = settings.settings(proof.devices, config.num_hidden_layers if family and family.layers else None,
                               visible_gpus() > 0, groups, task.max_length)
    rows, computations = [], []
    with tqdm(total=len(references) + len(wanted), unit="run", leave=False) as bar:
        for reference in references:
            bar.set_description(reference.name)
            computations.append(proof.run_reference(reference))
            proof.check_room(computations[0], len(references))
            bar.update()
        say(heading(task.name, computations[0], proof.limits))
        if not (family and family.layers):
            say(f"  pipelines are left out: a {config.model_type!r} model cannot be cut into stages here")
        if not groups:
            say(f"  tensor parallelism is left out: the layers of a {config.model_type!r} model cannot be split "
                "here")
        for setting in wanted:
            bar.set_description(setting.name)
            rows.append(proof.row(setting))
            bar.update()
            say(line_of(rows[-1]))
    return verification(task.name, proof.devices, computations[0], hardware_name(proof.devices), proof.limits, rows)


def heading(task: str, reference: Computation, limit: dict[str, float]) -> str:
    """What is run, and what counts as equal."""
    clipped = int((reference.column("grad_norm") > settings.MAX_GRAD_NORM).sum())
    return (f"The proof: {task}, {reference.summary['model']}, {settings.STEPS} steps in fp32 without dropout, "
            f"{clipped} of them clipped\n  {'equal, if at most':36}"
            + "".join(f"{name} {limit[name]:.1e}  " for name in SHOWN))


def line_of(row: Row) -> str:
    """A setting's line: its largest differences, or why it is not equal."""
    numbers = "".join(f"{name} {row.differences[name].relative:.1e}  " for name in SHOWN if row.status == EQUAL)
    return f"  {row.setting.name:36}{numbers}{row.status}" + (f": {row.reason}" if row.reason else "")


def say(text: str) -> None:
    """Print above the bar."""
    tqdm.write(text, file=sys.stdout)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Fine-tuning on SQuAD v2 with `transformers.Trainer`, as in its question-answering example, and bert_baseline.py.

    python -m benchmarks.against_trainer --model FOLDER --file squad.json --devices 1 2
    python -m benchmarks.against_trainer --model bert-base-uncased --file train-v2.0.json --steps 300 --precision bf16

Both train the same model from the same weights on the same windows, with the example's batch of 12 and its optimizer,
in turn. The example pads every window to 384 tokens, and the Trainer shuffles as PyTorch does. It also runs as somebody
would who set it up well, one change at a time: on CPUs with freed memory kept for the next step, as our scripts do;
with windows grouped by length and padded to the longest; and so with two processes. Prints samples per second of wall
time without the first steps, their ratios to the unchanged Trainer's and to the best Trainer's of the round, and each
validation loss, computed by one function.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.drawing import draw, run, summary
from workload.flag_groups import Parser

WARM_UP = 5  # steps that are not timed, as in our own runs
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}  # what `keep_freed_memory` sets
BATCH = 12  # the example's --per_device_train_batch_size


@dataclass(frozen=True)
class Setting:
    """How the Trainer is used."""

    name: str
    processes: int = 1
    groups_lengths: bool = False
    keeps_memory: bool = True


SETTINGS = [Setting("Trainer", keeps_memory=False), Setting("memory kept"),
            Setting("memory kept, grouped", groups_lengths=True),
            Setting("memory kept, grouped, x 2", processes=2, groups_lengths=True)]


def train_with_trainer(setting: Setting, flags: list[str], result: str) -> None:
    """Train in this process as `run_qa.py` does; write rate, validation loss and mean tokens a window to `result`."""
    import transformers

    from workload.arguments import Arguments, parse_arguments
    from workload.evaluation import evaluate, whole_model
    from workload.job import prepare
    from workload.launch import processes

    processes.keep_freed_memory = lambda: None  # ours, not part of the example
    arguments = parse_arguments(Arguments, flags)
    job = prepare("trainer", arguments, setting.processes)
    task, device, length = job.task, job.processes.device, job.task.max_length
    model = task.build_model()

    def as_inputs(feature: dict) -> dict:
        return {"input_ids": feature["input_ids"], "token_type_ids": feature["token_type_ids"],
                "start_positions": feature["start"], "end_positions": feature["end"], "length": feature["length"]}

    def collate(windows: list[dict]) -> dict[str, torch.Tensor]:  # each (batch, length)
        columns = [{name: window[name] for name in ("input_ids", "token_type_ids")} for window in windows]
        padded = task.tokenizer.pad(columns, padding="longest" if setting.groups_lengths else "max_length",
                                    max_length=length, pad_to_multiple_of=8, return_tensors="pt")
        return dict(padded) | {name: torch.tensor([window[name] for window in windows])
                               for name in ("start_positions", "end_positions")}

    features = task.samples("train")
    windows = features.map(as_inputs, remove_columns=features.column_names)

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if device.type == "cuda" and state.global_step in (WARM_UP, job.steps):
                torch.cuda.synchronize()
            if state.global_step == WARM_UP:
                self.began = time.perf_counter()
            elif state.global_step == job.steps:
                self.seconds = time.perf_counter() - self.began

    clock = Clock()
    transformers.Trainer(
        model, transformers.TrainingArguments(
            str(job.folder), per_device_train_batch_size=BATCH // setting.processes,
            learning_rate=arguments.learning_rate, max_steps=job.steps, seed=arguments.seed,
            bf16=job.precision == "bf16", save_strategy="no", report_to="none", use_cpu=device.type == "cpu",
            disable_tqdm=True, remove_unused_columns=False, ddp_find_unused_parameters=False,
            train_sampling_strategy="group_by_length" if setting.groups_lengths else "random"),
        train_dataset=windows, data_collator=collate, callbacks=[clock]).train()

    evaluation = evaluate(task, job.batches("validation", job.processes.rank), job.processes, whole_model(job, model))
    if evaluation is None:  # not the first process
        return
    rate = (job.steps - WARM_UP) * BATCH / clock.seconds
    tokens = features["length"][:]
    Path(result).write_text(json.dumps({"rate": rate, "loss": evaluation.validation_loss,
                                        "tokens": sum(tokens) / len(tokens)}))


def start_trainer(setting: Setting, flags: list[str], result: Path) -> dict[str, float]:
    """Train in new processes, which have all cores together; returns what `train_with_trainer` writes."""
    words = ["-m", "benchmarks.against_trainer", "--trainer", setting.name, str(result), *flags]
    if setting.processes > 1:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes), *words]
    run([*words, "--num_gpus", str(setting.processes)], KEPT if setting.keeps_memory else None)
    return json.loads(result.read_text())


def main() -> None:
    if sys.argv[1:2] == ["--trainer"]:  # started by this script
        [setting] = [setting for setting in SETTINGS if setting.name == sys.argv[2]]
        train_with_trainer(setting, sys.argv[4:], sys.argv[3])
        return
    parser = Parser()
    parser.add_argument("--model", required=True, help="Hub name or local folder of a pretrained BERT")
    parser.add_argument("--file", required=True, help="a SQuAD file, to draw questions from")
    parser.add_argument("--rounds", type=int, default=3, help="of all trainings; each round has a seed of its own")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--evaluated", type=int, default=200, help="questions to evaluate on")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="of bert_baseline.py; CPU processes share "
                        "the cores, all of which the Trainer's processes have together")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    settings = [setting for setting in SETTINGS if not (setting.keeps_memory and torch.cuda.is_available())]
    tokens = 0.0  # real ones in a window, the same in every round
    ratios: dict[tuple[int, str], list[float]] = {}
    print("| seed | | samples/s | / Trainer | / best Trainer | validation loss |", flush=True)
    print("|--:|---" + "|--:" * 4 + "|", flush=True)
    bar = tqdm(total=options.rounds * (len(settings) + len(options.devices)), unit="training")
    with tempfile.TemporaryDirectory() as name, bar:
        folder = Path(name)
        files = draw(options.file, folder, options.steps * BATCH, options.evaluated, seed=0)
        for seed in range(options.rounds):
            flags = [*files, "--model", options.model, "--global_batch_size", str(BATCH), "--max_steps",
                     str(options.steps), "--eval_steps", str(options.steps), "--warmup_steps", "0", "--weight_decay",
                     "0", "--precision", options.precision, "--seed", str(seed), "--output_dir", name]

            def write_row(what: str, rate: float, loss: float, *over: float, seed: int = seed) -> None:
                shown = " | ".join(f"{rate / each:.2f}" for each in over)
                tqdm.write(f"| {seed} | {what} | {rate:.2f} | {shown} | {loss:.4f} |", file=sys.stdout)

            theirs: list[float] = []
            for setting in settings:
                found = start_trainer(setting, [*flags, "--run_name", f"{setting.name}{seed}"], folder / "trainer.json")
                tokens = found["tokens"]
                theirs.append(found["rate"])
                write_row(setting.name, found["rate"], found["loss"], theirs[0], max(theirs))
                bar.update()
            for devices in options.devices:
                run(["bert_baseline.py", *flags, "--num_gpus", str(devices), "--micro_batch_size",
                     str(BATCH // devices), "--run_name", f"ours{seed}-{devices}"])
                ours = summary(folder / f"ours{seed}-{devices}")
                rate = float(ours["throughput_samples_per_s"])
                write_row(f"bert_baseline.py x {devices}", rate, float(ours["validation_loss"]), theirs[0], max(theirs))
                for rival, over in (("Trainer", theirs[0]), ("best Trainer", max(theirs))):
                    ratios.setdefault((devices, rival), []).append(rate / over)
                bar.update()
    print(f"{options.precision}, {options.steps} steps of {BATCH}, {tokens:.0f} real tokens a window")
    for (devices, rival), values in ratios.items():
        print(f"x {devices} / {rival}: median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()

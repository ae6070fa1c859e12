"""Fine-tuning on SQuAD v2 with `transformers.Trainer`, as in its question-answering example, and bert_baseline.py.

    python -m benchmarks.against_trainer --model FOLDER --file squad.json --devices 1 2
    python -m benchmarks.against_trainer --model bert-base-uncased --file train-v2.0.json --steps 300 --precision bf16

Both train the same model from the same weights on the same windows, with the example's batch of 12 and its optimizer,
in turn. The example pads every window to 384 tokens, and the Trainer shuffles as PyTorch does. On CPUs the Trainer is
timed a second time with freed memory kept for the next step, as our scripts do. Prints samples per second of wall time
without the first steps, their ratio to the unchanged Trainer's, and each validation loss, computed by one function.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.drawing import draw, run, summary

WARM_UP = 5  # steps that are not timed, as in our own runs
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}  # what `keep_freed_memory` sets
BATCH = 12  # the example's --per_device_train_batch_size


def train_with_trainer(flags: list[str], result: str) -> None:
    """Train in this process as `run_qa.py` does; write rate, validation loss and mean tokens a window to `result`."""
    import transformers

    from workload.arguments import Arguments, parse_arguments
    from workload.evaluation import evaluate
    from workload.job import prepare
    from workload.launch import processes
    from workload.precision import autocast

    processes.keep_freed_memory = lambda: None  # ours, not part of the example
    arguments = parse_arguments(Arguments, flags)
    job = prepare("trainer", arguments, 1)
    task, device, length = job.task, job.processes.device, job.task.max_length
    model = task.build_model()

    def pad(feature: dict) -> dict:
        padding = [0] * (length - feature["length"])
        return {"input_ids": feature["input_ids"] + padding, "token_type_ids": feature["token_type_ids"] + padding,
                "attention_mask": [1] * feature["length"] + padding,
                "start_positions": feature["start"], "end_positions": feature["end"]}

    features = task.samples("train")
    padded = features.map(pad, remove_columns=features.column_names)

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
            str(job.folder), per_device_train_batch_size=BATCH, learning_rate=arguments.learning_rate,
            max_steps=job.steps, seed=arguments.seed, bf16=job.precision == "bf16", save_strategy="no",
            report_to="none", use_cpu=device.type == "cpu", disable_tqdm=True),
        train_dataset=padded, data_collator=transformers.default_data_collator, callbacks=[clock]).train()

    def forward(share):
        model.eval()
        for micro_batch in share.micro_batches:
            with autocast(job.precision, device):
                logits = task.logits(model, micro_batch.inputs)
            yield task.losses_and_outputs(logits, micro_batch.labels)

    evaluation = evaluate(task, job.batches("validation", replica=0), job.processes, forward)
    assert evaluation is not None  # there is one process
    rate = (job.steps - WARM_UP) * BATCH / clock.seconds
    tokens = features["length"][:]
    Path(result).write_text(json.dumps({"rate": rate, "loss": evaluation.validation_loss,
                                        "tokens": sum(tokens) / len(tokens)}))


def write_row(seed: int, what: str, rate: float, loss: float, over: float) -> float:
    """Print a line of the table, as soon as it is known; returns the ratio of two rates."""
    tqdm.write(f"| {seed} | {what} | {rate:.2f} | {rate / over:.2f} | {loss:.4f} |", file=sys.stdout)
    return rate / over


def main() -> None:
    if sys.argv[1:2] == ["--trainer"]:  # started by this script
        train_with_trainer(sys.argv[3:], sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="Hub name or local folder of a pretrained BERT")
    parser.add_argument("--file", required=True, help="a SQuAD file, to draw questions from")
    parser.add_argument("--rounds", type=int, default=3, help="of all trainings; each round has a seed of its own")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--evaluated", type=int, default=200, help="questions to evaluate on")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="of bert_baseline.py; CPU processes share "
                        "the cores, all of which the Trainer's one process has")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    trainers = {"Trainer": {}}
    if not torch.cuda.is_available():
        trainers["Trainer, memory kept"] = KEPT
    tokens = 0.0  # real ones in a window, the same in every round
    ratios = {devices: [] for devices in options.devices}
    print("| seed | | samples/s | / Trainer's | validation loss |\n|--:|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = draw(options.file, folder, options.steps * BATCH, options.evaluated, seed=0)
        for seed in tqdm(range(options.rounds), unit="round"):
            flags = [*files, "--model", options.model, "--global_batch_size", str(BATCH), "--max_steps",
                     str(options.steps), "--eval_steps", str(options.steps), "--warmup_steps", "0", "--weight_decay",
                     "0", "--precision", options.precision, "--seed", str(seed), "--output_dir", name]

            theirs = {}
            for trainer, environment in trainers.items():
                run(["-m", "benchmarks.against_trainer", "--trainer", str(folder / "trainer.json"), *flags,
                     "--run_name", f"{trainer}{seed}"], environment)
                theirs[trainer] = json.loads((folder / "trainer.json").read_text())
                tokens = theirs[trainer].pop("tokens")
                write_row(seed, trainer, **theirs[trainer], over=theirs["Trainer"]["rate"])
            for devices in options.devices:
                run(["bert_baseline.py", *flags, "--num_gpus", str(devices), "--micro_batch_size",
                     str(BATCH // devices), "--run_name", f"ours{seed}-{devices}"])
                ours = summary(folder / f"ours{seed}-{devices}")
                rate, loss = float(ours["throughput_samples_per_s"]), float(ours["validation_loss"])
                ratios[devices].append(write_row(seed, f"bert_baseline.py x {devices}", rate, loss,
                                                 over=theirs["Trainer"]["rate"]))
    print(f"{options.precision}, {options.steps} steps of {BATCH}, {tokens:.0f} real tokens a window")
    for devices, values in ratios.items():
        print(f"x {devices}: median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()

"""How many operations each strategy gives a GPU, counted on pretended ones: exact, without a GPU or a quiet machine.

    python -m benchmarks.device_operations
    python -m benchmarks.device_operations --shapes bert-base --rows DDP FSDP

Operations are calls of PyTorch's kernels: a fused or foreach call is one, attention is one forward and one backward,
views are none, collectives are counted by themselves. Each row trains in bf16 with 2 micro-batches a step and with 4:
half of the difference is what each further micro-batch adds. Besides the scripts a bare loop: autocast, backward,
PyTorch's clipping and AdamW as they come. Writes device_operations.csv, the counts by name beside it, and prints a
table. Takes about a minute a row on 2 cores.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
from tqdm import tqdm

from benchmarks.drawing import ROOT
from workload.flag_groups import Parser

STEPS, LENGTH, SIZE = 3, 32, 2  # counts depend on none of them
CONTEXT, QUESTION = "The Elbe flows through Hamburg.", "Which river flows through Hamburg?"  # short: all is padded
# shape: its configuration's class, flags
SHAPES = {"bert-base": ("BertConfig", ["--tokenizer", "data/tiny_bert"]),
          "gpt2": ("GPT2Config", ["--tokenizer", "data/tiny_gpt2", "--task", "oscar", "--sample"])}
ROWS: dict[str, tuple[int, list[str]]] = {
    "bare loop": (1, ["bare"]),
    "one GPU": (1, ["bert_baseline.py"]),
    "DDP": (2, ["bert_baseline.py"]),
    "ZeRO-1": (2, ["zero.py", "--stage", "1"]),
    "ZeRO-2": (2, ["zero.py", "--stage", "2"]),
    "ZeRO-3": (2, ["zero.py", "--stage", "3"]),
    "FSDP": (2, ["fsdp.py"]),
    "pipeline": (2, ["pipeline.py"]),
    "torch 1f1b": (2, ["torch_pipeline.py", "--schedule", "1f1b"]),
    "torch zbv": (2, ["torch_pipeline.py", "--schedule", "zbv"]),
    "HF Trainer": (2, ["hf_trainer.py"]),
}
COLUMNS = ["shape", "row", "gpus", "of", "operations", "host_waits", "collectives", "cast_mib", "copied_mib"]


def bare_loop(flags: list[str], path: Path) -> None:
    """Train as most people write it down; counts as `counting.py` writes them."""
    import torch

    from tests.pretended_cuda.build import NAME
    from workload.arguments import Arguments, parse_arguments
    from workload.job import prepare

    arguments = parse_arguments(Arguments, flags)
    job = prepare("bare", arguments, 1)
    model = job.build_model(job.processes.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate)
    batches = job.batches("train", 0)
    gpu, waits, before = sys.modules[NAME], [], {}
    gpu.on_wait(waits.append)
    for step, (_, share) in enumerate(batches.shares(batches.training(arguments.seed, job.steps)), start=1):
        if step == job.steps:  # the first made the optimizer's state
            before = gpu.operations()
            del waits[:]
        for micro_batch in share.micro_batches:
            with torch.autocast("cuda", torch.bfloat16):
                loss = job.task.loss(job.task.logits(model, micro_batch.inputs), micro_batch.labels).mean()
            (loss / len(share.micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found = {name: [count - then for count, then in zip(counts, before.get(name, (0, 0)), strict=True)]
             for name, counts in gpu.operations().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"waits": [{"per_step": len(waits)}], "operations": {
        name: {"per_step": calls, "bytes_per_step": size} for name, (calls, size) in found.items() if calls}}))


def write_inputs(shape: str, folder: Path) -> list[str]:
    """Write the model's configuration and, for BERT, questions that all need padding; returns the flags for them."""
    kind, flags = SHAPES[shape]
    (folder / "config.json").write_text(getattr(transformers, kind)().to_json_string())
    if shape == "bert-base":
        answer = [{"text": "Elbe", "answer_start": CONTEXT.index("Elbe")}]
        questions = [{"id": str(number), "question": QUESTION, "answers": answer, "is_impossible": False}
                     for number in range(64)]
        paragraphs = [{"context": CONTEXT, "qas": questions}]
        (folder / "squad.json").write_text(json.dumps({"data": [{"title": "rivers", "paragraphs": paragraphs}]}))
        flags = [*flags, "--train_file", str(folder / "squad.json"), "--eval_file", str(folder / "squad.json")]
    return ["--model", str(folder), *flags]


def counts_of(words: list[str], gpus: int, micro_batches: int, shape_flags: list[str], folder: Path) -> dict:
    """The counts of one training's first rank."""
    counts = folder / "counts"
    flags = [*words[1:], *shape_flags, "--from_scratch", "true", "--max_seq_length", str(LENGTH), "--max_steps",
             str(STEPS), "--noise_scale_steps", "0", "--measure", "throughput", "--precision", "bf16", "--num_gpus",
             str(gpus), "--max_eval_examples", "4", "--output_dir", str(folder), "--run_name", "run"]
    is_pipeline = "pipeline" in words[0]
    flags += ["--global_batch_size", str(SIZE * micro_batches * (1 if is_pipeline else gpus))]
    flags += ["--micro_batches", str(micro_batches)] if is_pipeline else ["--micro_batch_size", str(SIZE)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus), "-m",
               "tests.pretended_cuda"]
    script = ["benchmarks/device_operations.py", "--bare", str(counts)] if words[0] == "bare" else [words[0]]
    variables = {"PRETENDED_GPUS": str(gpus), "DEVICE_COUNTS": str(counts), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script, *flags], cwd=ROOT, env=os.environ | variables, capture_output=True,
                          text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(script)}:\n{done.stderr[-2000:]}")
    return json.loads((counts / "rank0.json").read_text())


def totals(counts: dict) -> dict[str, float]:
    """A step's numbers, by column."""
    named = counts["operations"]

    def mib(name: str) -> float:
        return named.get(name, {}).get("bytes_per_step", 0) / 2**20

    collectives = sum(each["per_step"] for name, each in named.items() if name.startswith("c10d::"))
    return {"operations": sum(each["per_step"] for each in named.values()) - collectives,
            "host_waits": sum(wait["per_step"] for wait in counts["waits"]), "collectives": collectives,
            "cast_mib": mib("cast"), "copied_mib": mib("copy")}


def main() -> None:
    parser = Parser()
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("device_operations.csv"))
    options = parser.parse_args()
    written, by_name = [], {}
    with tqdm(total=2 * len(options.shapes) * len(options.rows), unit="training") as bar:
        for shape, row in itertools.product(options.shapes, options.rows):
            gpus, words = ROWS[row]
            found = {}
            for micro_batches in (2, 4):
                with tempfile.TemporaryDirectory() as temporary:
                    model = Path(temporary, shape)
                    model.mkdir()
                    counts = counts_of(words, gpus, micro_batches, write_inputs(shape, model), Path(temporary))
                by_name[f"{shape}, {row}, {micro_batches} micro-batches"] = counts["operations"]
                found[micro_batches] = totals(counts)
                bar.update()
            further = {name: (found[4][name] - found[2][name]) / 2 for name in found[2]}
            written += [{"shape": shape, "row": row, "gpus": gpus, "of": of,
                         **{name: f"{value:.0f}" for name, value in values.items()}}
                        for of, values in (("step of 2", found[2]), ("each further", further))]
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    options.output.with_suffix(".json").write_text(json.dumps(by_name, indent=1))
    print("| " + " | ".join(COLUMNS) + " |", "|---|---|--:|---" + "|--:" * 5 + "|", sep="\n")
    for row in written:
        print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_loop(sys.argv[3:], Path(sys.argv[2], "rank0.json"))
    else:
        main()

"""`verify.py` over some strategies of its own and some that are broken."""

import sys

import verify
from verification import settings
from verification.settings import Setting
from workload.errors import one_line_errors

SIZE = "--num_gpus", "2", "--micro_batch_size", "4"
PIPELINE = "--num_gpus", "2", "--stages", "2", "--micro_batches", "8"
MUTATED = {"clipping_left_to_deepspeed": PIPELINE, "bucket_not_reduced": SIZE, "shard_scaled": SIZE,
           "sample_fed_twice": (*SIZE, "--stage", "2"), "dropout_left_on": SIZE,
           "replicated_counted_twice": SIZE}

OWN = "DDP x 2", "ZeRO-2 x 2", "PyTorch zbv x 2"
everything = settings.settings
settings.settings = lambda *given, **named: [
    *(setting for setting in everything(*given, **named) if setting.name in OWN),
    *(Setting(name, "tests/scripts/mutated.py", (name, *flags), 2) for name, flags in MUTATED.items())]

if __name__ == "__main__":
    sys.argv += ["--num_gpus", "2"]
    with one_line_errors():
        verify.main()

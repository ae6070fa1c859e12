"""Reads the environment variables that this process's launcher has set: torchrun's, or DeepSpeed's.

Shells, containers and cluster jobs leave some of these variables behind. They count only if they are complete.
"""

import argparse
import os

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK",
           "GROUP_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE")
VARIABLES = (*NUMBERS, "MASTER_ADDR", "OMP_NUM_THREADS")
PREFIXES = ("ROLE_", "TORCHELASTIC_")
# Programs that start a command several times without telling PyTorch. These variables say how many times, and which one
# of them this process is.
TASKS = {"srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
         "mpiexec": ("PMI_SIZE", "PMI_RANK")}


def problem() -> str | None:
    """The problem with the variables, in one line; None if they are complete, or none is set."""
    size = os.environ.get("WORLD_SIZE") or "0"
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if size == "0" or size == "1" and missing:  # no launcher, or a container with one process: nobody else is there
        for program, (count, _) in TASKS.items():
            if _number(count) > 1:  # `deepspeed --launcher slurm` is no more than that either
                return (f"{program} started this script {_number(count)} times, and none would know of the others; "
                        "let it start one torchrun on each node, as docs/clusters.md shows")
        return None
    if missing:
        return (f"WORLD_SIZE is {size}, but {missing[0]} is not set, so no launcher started this process; start it "
                "with torchrun on each node, as docs/clusters.md shows, or unset WORLD_SIZE to use this machine alone")
    for name in NUMBERS:
        value = os.environ.get(name) or "0"
        if not (value.isascii() and value.isdecimal()):
            return f"the environment variable {name} is {value!r}; it must be a whole number, as torchrun sets it"
    if _number("MASTER_PORT") > 65535:
        return f"the environment variable MASTER_PORT is {_number('MASTER_PORT')}; it must be at most 65535"
    if _number("RANK") >= int(size):
        return f"the environment variable RANK is {_number('RANK')}, but WORLD_SIZE is {size}; start with torchrun"
    return None


def processes() -> int:
    """How many processes the launcher started, this one among them; 0 without a launcher."""
    is_complete = all(os.environ.get(name) for name in NEEDED)
    return _number("WORLD_SIZE") if is_complete and problem() is None else 0


def rank() -> int:
    """This process among those that the launcher started, or that srun or mpirun did; 0 if it is alone."""
    if processes():
        return _number("RANK")
    return next((_number(mine) for count, mine in TASKS.values() if _number(count) > 1), 0)


def local_rank() -> int:
    """This process among those of its machine."""
    return _number("LOCAL_RANK") if processes() else 0


def processes_on_this_node() -> int:
    """How many processes the launcher started on this machine; 0 without one."""
    return processes() and (_number("LOCAL_WORLD_SIZE") or _number("LOCAL_SIZE"))


def nodes() -> int:
    """How many machines the launcher runs on; 1 without one."""
    return processes() and (_number("GROUP_WORLD_SIZE") or _number("CROSS_SIZE")) or 1


def node() -> int:
    """This machine among them."""
    return processes() and (_number("GROUP_RANK") or _number("CROSS_RANK"))


def without_local_rank(words: list[str]) -> list[str]:
    """A command's words without `--local_rank`, which old launchers add although LOCAL_RANK says the same."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank", nargs="?")
    return parser.parse_known_args(words)[1]


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else 0

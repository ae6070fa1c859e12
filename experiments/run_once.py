"""Run a training script, unless it has been run already: `python experiments/run_once.py zero.py --stage 2 ...`

A finished run of the very same command below --output_dir is left as it is, one that was broken off goes on from its
last checkpoint, and anything else is replaced. So an experiment that was interrupted goes on where it was when it is
started again.

LAUNCHER in the environment names a program that takes Python's place, as experiments/slurm/launch.sh does.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

CHECKPOINTS = ["--checkpoint_steps", "500"]  # where the command says nothing else
NEW, GOES_ON = ["--overwrite"], ["--resume", "auto"]  # added here like the above, and no part of what is run


def status_of(command: list[str]) -> tuple[str | None, Path | None]:
    """What became of this command before, and where."""
    results = Path(command[command.index("--output_dir") + 1])
    recorded = [shlex.join([os.path.basename(command[0]), *command[1:], *words])
                for words in (NEW, [*CHECKPOINTS, *NEW], GOES_ON, [*CHECKPOINTS, *GOES_ON])]
    for path in sorted(results.glob("*/run.json")):
        try:
            description = json.loads(path.read_text())
        except ValueError:  # broken off while it was written
            continue
        if description.get("command") in recorded:
            return description.get("status"), path.parent
    return None, None


if __name__ == "__main__":
    words = sys.argv[1:]
    status, folder = status_of(words)
    if status == "finished":
        print(f"{folder} is finished")
    else:
        launcher = os.environ.get("LAUNCHER", sys.executable)
        if launcher != sys.executable:
            os.environ["RUN_STARTED_AT"] = str(time.time())  # runtimes begin here, not where a node's processes do
        checkpoints = [] if "--checkpoint_steps" in words else CHECKPOINTS
        os.execv(launcher, [launcher, *words, *checkpoints, *(GOES_ON if status else NEW)])

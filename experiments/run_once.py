"""Run a training script, unless it has been run already: `python experiments/run_once.py zero.py --stage 2 ...`

If the same command has a finished run below --output_dir, nothing is run. If it has an interrupted one, that run is
resumed from its last checkpoint, or starts anew with --profile_steps, as only an uninterrupted run can be profiled.
Otherwise a new run starts, replacing any other run of the same name. So an interrupted experiment is resumed by
starting it again.

LAUNCHER in the environment names a program to use instead of Python, such as experiments/slurm/launch.sh.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

# Flags added here. They do not change what is run, so a recorded command may have any of them.
CHECKPOINTS = ["--checkpoint_steps", "500"]  # unless the command has this flag
NEW, RESUME = ["--overwrite"], ["--resume", "auto"]


def status_of(command: list[str]) -> tuple[str | None, Path | None]:
    """Status and folder of an earlier run of this command, None if there is none."""
    results = Path(command[command.index("--output_dir") + 1])
    recorded = [shlex.join([os.path.basename(command[0]), *command[1:], *words])
                for words in (NEW, [*CHECKPOINTS, *NEW], RESUME, [*CHECKPOINTS, *RESUME])]
    for path in sorted(results.glob("*/run.json")):
        try:
            description = json.loads(path.read_text())
        except ValueError:  # the run was killed while it wrote this file
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
            os.environ["RUN_STARTED_AT"] = str(time.time())  # runtimes begin here, not when a node starts its processes
        given = {word.split("=")[0].replace("-", "_") for word in words}  # --checkpoint-steps=9: __checkpoint_steps
        checkpoints = [] if "__checkpoint_steps" in given else CHECKPOINTS
        is_resumed = status and "__profile_steps" not in given
        os.execv(launcher, [launcher, *words, *checkpoints, *(RESUME if is_resumed else NEW)])

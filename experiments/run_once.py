"""Run a training script, unless it has been run already: `python experiments/run_once.py zero.py --stage 2 ...`

A finished run of the very same command below --output_dir is left as it is; anything else is run, and a run that was
broken off is replaced. So an experiment that was interrupted goes on where it was when it is started again.

LAUNCHER in the environment names a program that takes Python's place, as experiments/slurm/launch.sh does.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path


def finished_run(command: list[str]) -> Path | None:
    """The folder of a finished run of this command, if there is one."""
    results = Path(command[command.index("--output_dir") + 1])
    recorded = shlex.join([os.path.basename(command[0]), *command[1:]])
    for path in sorted(results.glob("*/run.json")):
        try:
            description = json.loads(path.read_text())
        except ValueError:  # broken off while it was written
            continue
        if description.get("status") == "finished" and description.get("command") == recorded:
            return path.parent
    return None


if __name__ == "__main__":
    words = sys.argv[1:]
    if folder := finished_run([*words, "--overwrite"]):
        print(f"{folder} is finished")
    else:
        launcher = os.environ.get("LAUNCHER", sys.executable)
        if launcher != sys.executable:
            os.environ["RUN_STARTED_AT"] = str(time.time())  # runtimes begin here, not where a node's processes do
        os.execv(launcher, [launcher, *words, "--overwrite"])

"""The tasks: what is read, what is learned, how it is scored."""

from workload.arguments import Arguments
from workload.tasks.squad_v2 import SquadV2

TASKS = {"squad_v2": SquadV2}


def open_task(arguments: Arguments):
    """The task of `--task`, its inputs checked, nothing large loaded yet.

    Raises:
        InputError: a file or a model that cannot be used.
    """
    return TASKS[arguments.task](arguments)

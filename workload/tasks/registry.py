"""The tasks by name. Imported when a task is opened: what they read data with takes a second to import."""

from workload.arguments import Arguments
from workload.tasks.imdb import Imdb
from workload.tasks.mnli import Mnli
from workload.tasks.oscar import Oscar
from workload.tasks.squad_v2 import SquadV2
from workload.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (SquadV2, Imdb, Mnli, Oscar)}


def open_task(arguments: Arguments) -> Task:
    """The task that `--task` names. Its inputs have been checked, but nothing large has been loaded yet.

    Raises:
        InputError: a file or a model that cannot be used.
    """
    return TASKS[arguments.task](arguments)

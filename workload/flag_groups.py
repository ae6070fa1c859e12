"""How flags show in --help, in groups and with the script's own commands as examples, and what an unknown one meant."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# Groups in --help by their first flag, in the order of the flags; those of a script come before them.
GROUPS = {"task": "task", "train_file": "data", "model": "model", "global_batch_size": "batch", "epochs": "optimizer",
          "precision": "precision", "num_gpus": "devices", "eval_steps": "measuring", "output_dir": "output"}


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Appends defaults that say something, and leaves the examples' lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings and action.option_strings[0].startswith("--no_"):  # with its opposite's help, else
            return f"the same as --{action.dest} false"
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Reads the flags of a script that does not train; its errors are one line, with exit code 2."""

    def __init__(self) -> None:
        super().__init__(**about_script(), formatter_class=Formatter, allow_abbrev=False)

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]  of its overloads, the one that scripts call
            self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_flag(unknown[0], re.findall(r"--\w+", self.format_usage())))
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def unknown_flag(word: str, flags: Iterable[str]) -> str:
    """What to say of a word of the command line that no flag takes: the nearest flag, if one is near."""
    close = difflib.get_close_matches(word.split("=")[0], list(flags), n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    kind = "flag" if word.startswith("-") else "argument"
    return f"unknown {kind} {word}; {meant}--help lists all"


def grouped(kind: type, common: type) -> list[type]:
    """The flags as a dataclass a group, as HfArgumentParser takes them: the script's own first.

    Args:
        kind: a script's flags, a dataclass.
        common: those that every script takes.
    """
    shared = {each.name for each in dataclasses.fields(common)}
    groups: dict[str, list[tuple]] = {"strategy": []}
    title = ""
    for each in dataclasses.fields(kind):
        title = GROUPS.get(each.name, title) if each.name in shared else "strategy"
        again = dataclasses.field(default=each.default, metadata=each.metadata)
        groups.setdefault(title, []).append((each.name, each.type, again))
    return [dataclasses.make_dataclass(title, flags, namespace={"_argument_group_name": title})
            for title, flags in groups.items() if flags]


def about_script() -> dict[str, Any]:
    """What the running script says of itself, for its parser: its first line, and its commands as examples."""
    first, *more = (getattr(sys.modules["__main__"], "__doc__", None) or "").splitlines() or [""]
    examples = [line for line in more if line.startswith("    ")]
    return {"description": first, "epilog": "\n".join(["examples:", *examples])}

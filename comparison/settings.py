"""Which runs form a row, how rows are named, and which rows may be compared."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
import pandas as pd

from comparison.runs import BREAKS, Run
from comparison.study import VERSIONS, Study
from measurement.columns import WORKLOAD_FLAGS

LONGEST_START = 200  # bytes of a file name that describe a group; the whole name may have 255
LONGEST_WORDS = 100  # characters of DeepSpeed settings in a row's name
LONGEST_FLAG = 40  # characters of a flag's value in a heading
DIRTY_MARK = " †"
RATE = "throughput_samples_per_s"
# Columns in which a row and what it is compared with are to agree if possible, the most important first.
CLOSEST = [*VERSIONS, "script_digest", "deepspeed_settings", "measure", "schedule", "micro_batch_size"]


def phrase(pattern: str, value: object) -> str:
    """Fill a value into a pattern; an ending in brackets, such as `stage(s)`, is kept unless the value is 1."""
    return re.sub(r"\((e?s)\)", "" if str(value) == "1" else r"\1", pattern.format(value))


def describe(row: pd.Series, columns: list[str], study: Study) -> str:
    """The heading's words for these columns of a group."""
    known = {column: phrase(study.group[column], row[column]) for column in columns if pd.notna(row[column])}
    return ", ".join(known.get(column, f"unrecorded {column}") for column in columns)


def mixed_versions(group: pd.DataFrame, study: Study) -> str:
    """The end of a heading that names the code and versions that a group mixes; empty if it mixes none."""
    mixed = {column: [value if pd.notna(value) else "unrecorded" for value in group[column].unique()]
             for column in VERSIONS if column in study.details and group[column].nunique(dropna=False) > 1}
    words = [phrase(study.details[column], " and ".join(sorted(values))) for column, values in mixed.items()]
    return f", mixed: {', '.join(words)}" if words else ""


def tell_workloads_apart(rows: pd.DataFrame, members: Mapping[int, Sequence[Run]], study: Study) -> dict[int, str]:
    """The end of the heading of groups that differ in nothing but their workload: its hash, and the flags behind it.

    Args:
        members: the runs behind each row. Where one has no readable flags, only hashes are named.
    """
    found: dict[int, str] = {}
    for _, alike in rows.groupby([column for column in study.group if column != "workload"], dropna=False):
        first = alike.drop_duplicates("group")
        flags = {row: members[row][0].description.get("flags") for row in first.index.tolist()}
        values = {name: {row: "unset" if each.get(name) is None else str(each[name])
                         for row, each in flags.items() if isinstance(each, dict)} for name in WORKLOAD_FLAGS}
        differing = [name for name, each in values.items() if len(each) == len(first) and len(set(each.values())) > 1
                     and not any(BREAKS.search(value) or len(value) > LONGEST_FLAG for value in each.values())]
        for row in flags if len(first) > 1 else ():
            words = ", ".join(f"--{name} {values[name][row]}" for name in differing)
            found[first["group"][row]] = ", " + describe(first.loc[row], ["workload"], study) + (
                f" ({words})" if words else "")
    return found


def name_start(description: str, number: int) -> str:
    """The beginning of a group's figure names: its description, or its number if that is too long."""
    start = re.sub(r"\W+", "_", description + "_").lower()
    return start if len(start.encode()) <= LONGEST_START else f"group_{number}_"


def with_settings(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs with the columns that make their settings normalised, so that equal settings are equal values."""
    runs = runs.astype(dict.fromkeys(study.whole_numbers, "Int64"))
    # On GPUs the host's threads matter little, and their default number falls as the number of processes grows.
    on_gpu = runs["hardware"].notna() & ~runs["hardware"].astype(str).str.startswith("CPU")
    runs.loc[on_gpu, "cpu_threads"] = pd.NA
    for column, value in (("tuned_by", "hand"), ("nodes", 1)):  # records older than these columns
        runs[column] = runs[column].fillna(value)
    # A run without a recorded workload joins the group that it would otherwise belong to, unless there are several.
    for _, alike in runs.groupby([column for column in study.group if column != "workload"], dropna=False):
        if alike["workload"].nunique() == 1:
            runs.loc[alike.index, "workload"] = alike["workload"].dropna().iloc[0]
    return runs


def is_staged(row: pd.Series) -> bool:
    return "pipeline" in row["strategy"] and pd.notna(row["pipeline_stages"])


def strategy_name(row: pd.Series, study: Study) -> str:
    """The strategy without its number of devices; a pipeline's name includes its stages."""
    look = study.look(row["strategy"])
    label = look.label if look else row["strategy"]
    return f"{label} {phrase(study.details['pipeline_stages'], row['pipeline_stages'])}" if is_staged(row) else label


def setting_name(row: pd.Series, study: Study) -> str:
    devices, replicas = row["devices"], row["replicas"]
    if is_staged(row):
        return strategy_name(row, study) + (f" x {replicas} replicas" if pd.notna(replicas) and replicas > 1 else "")
    if row["strategy"].startswith("tensor_parallel") and pd.notna(replicas) and replicas > 1:
        return f"{strategy_name(row, study)} x {devices // replicas} x {replicas} replicas"
    return "1 device" if row["strategy"] == "ddp" and devices == 1 else f"{strategy_name(row, study)} x {devices}"


def deepspeed_differences(settings: pd.Series) -> list[str | None]:
    """For each row, the DeepSpeed settings in which the rows differ; if they are many, a hash of all its settings.

    Args:
        settings: as `measurement.columns.deepspeed_settings` writes them; NaN where unrecorded.
    """
    rows = [dict(part.partition("=")[::2] for part in text.split("; ")) if pd.notna(text) else None
            for text in settings]
    known = [row for row in rows if row is not None]
    keys = sorted({key for row in known for key in row} - {"default"})
    differing = [key for key in keys if len({row.get(key) for row in known}) > 1]
    names = [key.rpartition(".")[2] for key in differing]
    names = names if len(set(names)) == len(names) else differing
    columns = list(zip(names, differing, strict=True))
    words = [None if row is None else ", ".join(f"{name} {row.get(key, 'by default')}" for name, key in columns)
             for row in rows]
    if not all(0 < len(each) <= LONGEST_WORDS for each in words if each is not None):
        words = [text if pd.isna(text) else f"DeepSpeed settings {sha256(text.encode()).hexdigest()[:8]}"
                 for text in settings]
    return words


def tell_apart(rows: pd.DataFrame, name: str, alike_in: list[str], patterns: dict[str, str]) -> None:
    """Append to the names of rows that are equal in `alike_in` the value of each column in which they differ.

    Args:
        name: the column with the names, changed in place.
        patterns: column -> its wording, in the order in which they are tried.
    """
    for column, pattern in patterns.items():
        for _, alike in rows.groupby(alike_in):
            if alike[column].nunique(dropna=False) > 1:
                values = deepspeed_differences(alike[column]) if column == "deepspeed_settings" else alike[column]
                rows.loc[alike.index, name] += [
                    ", " + (phrase(pattern, value) if pd.notna(value) else f"unrecorded {column.replace('_', ' ')}")
                    for value in values]


def add_names(rows: pd.DataFrame, study: Study) -> None:
    """Number the groups of comparable rows, and give each row a name that is unique in its group.

    Rows of one `epoch_group` train on the same samples in an epoch, whatever their global batch; NaN if unrecorded.
    """
    rows["group"] = rows.groupby(list(study.group), dropna=False).ngroup()
    columns = [column for column in study.group if column not in ("global_batch_size", "workload")]
    numbers = rows.groupby([*columns, "epoch_workload"], dropna=False).ngroup()
    rows["epoch_group"] = numbers.where(rows["epoch_workload"].notna())
    rows["setting"] = [setting_name(row, study) for _, row in rows.iterrows()]
    mixed = {column: study.details[column] for column in VERSIONS if column in study.details}
    others = {column: pattern for column, pattern in study.details.items() if column not in mixed}
    tell_apart(rows, "setting", ["setting", "group"], others)
    tell_apart(rows, "setting", ["group"], mixed)  # every row of a mixed table names its code and versions


def shown_names(rows: pd.DataFrame) -> pd.Series:
    """The rows' names as tables and figures show them: marked if a run started from a tree with uncommitted changes."""
    return rows["setting"].mask(rows["is_dirty"], rows["setting"] + DIRTY_MARK)


class Choices:
    """The rows that others may be compared with. Each method gives an index in `rows` for each row, -1 for none."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows[["group", "epoch_group", "strategy", "devices", "nodes", "global_batch_size", RATE, *CLOSEST]]
        self.each = [row for _, row in self.rows.iterrows()]
        self.ddp = _by(self.rows[rows["strategy"] == "ddp"], ["group", "devices", "nodes"])
        one = self.rows[(rows["devices"] == 1) & (rows["tuned_by"] != "autotuner")]
        self.same_batch = _by(one, ["group", "strategy"])
        self.same_batch_per_device = _by(one, ["epoch_group", "strategy", "global_batch_size"])

    def ddp_rows(self) -> np.ndarray:
        """The DDP row on as many devices and nodes; none for that row itself."""
        found = [closest(self.ddp.get((row["group"], row["devices"], row["nodes"])), row) for row in self.each]
        return np.array([-1 if index == row.name else index for index, row in zip(found, self.each, strict=True)])

    def one_device_rows(self, kind: str, strategy: str | None = None) -> np.ndarray:
        """The strategy's row on one device, by default of each row's own strategy.

        Args:
            kind: "strong" for the same global batch and so the same group, "weak" for the same batch per device.
        """
        found = []
        for row in self.each:
            name = strategy or row["strategy"]
            per_device = row["global_batch_size"] / row["devices"]
            choices = (self.same_batch_per_device.get((row["epoch_group"], name, per_device)) if kind == "weak" else
                       self.same_batch.get((row["group"], name)))
            is_itself = choices is not None and row.name in choices.index
            found.append(row.name if is_itself else closest(choices, row))
        return np.array(found)


def _by(rows: pd.DataFrame, columns: list[str]) -> dict[tuple, pd.DataFrame]:
    """The rows by their values in these columns; rows without a value are left out."""
    return dict(iter(rows.groupby(columns)))


def closest(choices: pd.DataFrame | None, row: pd.Series) -> int:
    """Index of the choice to compare a row with: one of equal settings if possible, else the fastest; -1 for none."""
    if choices is None:
        return -1
    for column in CLOSEST if len(choices) > 1 else ():
        same = choices[choices[column] == row[column]]
        choices = choices if same.empty else same
    return choices.index[int(choices[RATE].fillna(0).argmax())]

"""Which runs make one row, what a row is called, and which rows may be compared."""

import re

import pandas as pd

from comparison.study import Study


def phrase(pattern: str, value: object) -> str:
    """Fill in a number or a name; an ending in brackets is for more than one."""
    return re.sub(r"\((e?s)\)", "" if str(value) == "1" else r"\1", pattern.format(value))


def describe(row: pd.Series, columns: list[str], study: Study) -> str:
    """What the rows of a group have in common, in the words of a heading."""
    known = {column: phrase(study.group[column], row[column]) for column in columns if pd.notna(row[column])}
    return ", ".join(known.get(column, f"unrecorded {column}") for column in columns)


def with_settings(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs with what makes their settings in a form that can be compared."""
    runs = runs.astype(dict.fromkeys(study.whole_numbers, "Int64"))
    # On GPUs the host's threads do little, and their default number falls as the number of processes grows.
    on_gpu = runs["hardware"].notna() & ~runs["hardware"].astype(str).str.startswith("CPU")
    runs.loc[on_gpu, "cpu_threads"] = pd.NA
    for column, value in (("tuned_by", "hand"), ("nodes", 1)):  # as it was before any record said so
        runs[column] = runs[column].fillna(value)
    # A run that does not record its workload counts as equal, unless there are several it could be equal to.
    for _, alike in runs.groupby([column for column in study.group if column != "workload"], dropna=False):
        if alike["workload"].nunique() == 1:
            runs.loc[alike.index, "workload"] = alike["workload"].dropna().iloc[0]
    return runs


def setting_name(row: pd.Series, study: Study) -> str:
    strategy, devices, replicas = row["strategy"], row["devices"], row["replicas"]
    label = study.strategies.get(strategy, [strategy])[0]
    if "pipeline" in strategy and pd.notna(row["pipeline_stages"]):
        copies = f" x {replicas} replicas" if pd.notna(replicas) and replicas > 1 else ""
        return f"{label} {phrase(study.details['pipeline_stages'], row['pipeline_stages'])}{copies}"
    return "1 device" if strategy == "ddp" and devices == 1 else f"{label} x {devices}"


def add_names(rows: pd.DataFrame, study: Study) -> None:
    """Number the groups of comparable rows, and name each row so that it is unlike the others of its group."""
    rows["group"] = rows.groupby(list(study.group), dropna=False).ngroup()
    rows["setting"] = [setting_name(row, study) for _, row in rows.iterrows()]
    for column, pattern in study.details.items():
        for _, alike in rows.groupby(["group", "setting"]):
            if alike[column].nunique(dropna=False) > 1:
                rows.loc[alike.index, "setting"] += [
                    ", " + (phrase(pattern, value) if pd.notna(value) else f"unrecorded {column.replace('_', ' ')}")
                    for value in alike[column]]


def ddp_row(rows: pd.DataFrame, row: pd.Series, devices: int) -> int:
    """Index of the DDP row on so many devices that a row is measured against; -1 where there is none.

    On as many nodes, too, as far as the devices go round. Of several that of the same micro-batch size, else the
    fastest.
    """
    same = rows[(rows["group"] == row["group"]) & (rows["strategy"] == "ddp") & (rows["devices"] == devices)
                & (rows["nodes"] == min(row["nodes"], devices))]
    same_size = same[same["micro_batch_size"] == row["micro_batch_size"]]
    choices = same if same_size.empty else same_size
    return -1 if choices.empty else choices["throughput_samples_per_s"].fillna(0).idxmax()

"""What measured links mean: latency and bandwidth by a fit, and in words.

`measured` is what `verification.links` writes. Its `rows` have
    operation   all-reduce, all-gather, reduce-scatter, broadcast, or send/receive (from one rank to the other)
    ranks       those that took part
    bytes       of the whole tensor: the sum, all that was gathered, all that is to be scattered, or the message
    seconds     of one operation: the median of `repeats`, each by the clock of the slowest rank
    spread      the longest minus the shortest of them, in seconds
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

KIB, MIB = 2**10, 2**20
SEND = "send/receive"
# The bytes that pass each device's link, divided by the bytes of the tensor, among n devices in a ring.
WIRE: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n, "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n, "broadcast": lambda n: (n - 1) / n, SEND: lambda n: 1.0}
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 7: "a seventh", 8: "an eighth",
             9: "a ninth", 10: "a tenth"}
SLOW = 0.5  # of the median of all pairs
UNSTEADY = 1.0  # typical spread, as a part of the median

Rows = list[dict[str, Any]]


def wire_bytes(row: dict[str, Any]) -> float:
    """The bytes that pass each device's link in one operation."""
    return row["bytes"] * WIRE[row["operation"]](len(row["ranks"]))


def fit(rows: Rows) -> Rows:
    """Latency and bandwidth of each operation among each set of ranks that has two sizes or more.

    The least squares of relative errors in seconds = latency_s + bytes on the wire / bandwidth; neither is negative.
    Relative, for otherwise the largest size would decide alone. `error_pct` is the largest of these errors: links have
    several protocols, so one straight line is an approximation.

    Returns:
        A dictionary each: operation, ranks, latency_s, bandwidth_bytes_per_s (None if time does not grow with size),
        error_pct.
    """
    from scipy.optimize import nnls  # plots.py and plan.py read this module, and need not wait for it

    fits = []
    for (operation, ranks), group in _grouped(rows).items():
        if len(group) < 2:
            continue
        seconds = np.array([row["seconds"] for row in group])
        size = np.array([wire_bytes(row) for row in group])
        terms, ones = np.stack([1 / seconds, size / seconds]), np.ones(len(group))
        latency, per_byte = nnls(terms.T, ones)[0]
        error = np.abs(latency * terms[0] + per_byte * terms[1] - 1).max()
        fits.append({"operation": operation, "ranks": list(ranks), "latency_s": float(latency),
                     "bandwidth_bytes_per_s": float(1 / per_byte) if per_byte > 0 else None,
                     "error_pct": round(100 * float(error), 2)})
    return fits


def link_lines(measured: dict[str, Any], why_slow: Callable[[int, int], str | None] = lambda a, b: None) -> list[str]:
    """What a user reads about the links: a line per operation, what was left out, and the pairs that are slow.

    Args:
        why_slow: a reason for a slow link between two ranks, or None; see `machine.slow_link`.
    """
    everyone = list(range(measured["ranks"]))
    kind, several = ("GPU", "GPUs") if measured["device"] == "cuda" else ("process", "processes")
    lines = [f"links: {measured['ranks']} {several}, {measured['backend']}; GB/s through each {kind}'s link"]
    for (operation, ranks), group in _grouped(measured["rows"]).items():
        if list(ranks) == everyone or operation == SEND and ranks == (0, 1):
            low, high = min(group, key=_size), max(group, key=_size)
            among = f" from {kind} 0 to 1" if operation == SEND else ""
            lines.append(f"{operation}{among}: {_rate(high)} GB/s at {in_words(high['bytes'])}, "
                         f"{1e6 * low['seconds']:.0f} us at {in_words(low['bytes'])}")
    left_out = defaultdict(list)
    for row in measured["left_out"]:
        who = f" between {kind} {row['ranks'][0]} and {row['ranks'][1]}" if row["operation"] == SEND else ""
        left_out[f"{row['operation']}{who}", row["reason"]].append(in_words(row["bytes"]))
    lines += [f"not measured: {what} of {', '.join(sizes)}: {reason}" for (what, reason), sizes in left_out.items()]
    lines += _pair_lines(measured["rows"], kind, why_slow)
    varies = statistics.median([row["spread"] / row["seconds"] for row in measured["rows"]])
    if varies > UNSTEADY:
        lines.append(f"warning: repeated measurements differ by {100 * varies:.0f} %; something else uses this machine")
    return lines


def _pair_lines(rows: Rows, kind: str, why_slow: Callable[[int, int], str | None]) -> list[str]:
    """The range of all pairs' bandwidths, and each pair that is far below the others."""
    groups = {ranks: group for (operation, ranks), group in _grouped(rows).items() if operation == SEND}
    common = set.intersection(*({_size(row) for row in group} for group in groups.values())) if groups else set()
    if len(groups) < 2 or not common:
        return []
    size = max(common)
    at_size = {ranks: next(row for row in group if _size(row) == size) for ranks, group in groups.items()}
    rates = {ranks: size / row["seconds"] for ranks, row in at_size.items()}
    median = statistics.median(rates.values())
    ends = [_rate(max(at_size.values(), key=lambda row: row["seconds"] * sign)) for sign in (1, -1)]
    lines = [f"pairs: {ends[0]} to {ends[1]} GB/s at {in_words(size)}"]
    for (a, b), rate in rates.items():
        if rate < SLOW * median:
            reason = why_slow(a, b)
            lines.append(f"warning: {kind} {a} and {b} exchange data at {in_fractions(rate / median)} of the other "
                         "pairs' rate" + (f": {reason}" if reason else f" ({_rate(at_size[a, b])} GB/s)"))
    return lines


def in_words(size: int) -> str:
    """A size in bytes as users read it."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def in_fractions(ratio: float) -> str:
    """A ratio of at most a half: "a third"."""
    part = round(1 / ratio)
    return FRACTIONS.get(part, f"1/{part}")


def _rate(row: dict[str, Any]) -> str:
    """GB (1e9 bytes) a second through each device's link, to three digits."""
    rate = wire_bytes(row) / row["seconds"] / 1e9
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _size(row: dict[str, Any]) -> int:
    return row["bytes"]


def _grouped(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, tuple[int, ...]], Rows]:
    groups: dict[tuple[str, tuple[int, ...]], Rows] = defaultdict(list)
    for row in rows:
        groups[row["operation"], tuple(row["ranks"])].append(row)
    return groups

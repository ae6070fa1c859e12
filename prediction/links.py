"""The links among devices: as measured, extrapolated to larger groups, or by data sheets where they cannot be measured.

`links.csv` has a row a link: what a data sheet says, what large messages reached in public benchmarks, and how long the
smallest all-reduce took among how many devices; each with its source. Bandwidths are one way, in GB (1e9 bytes) a
second. A network whose latency nobody publishes is taken to have that of the slowest one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, log2
from pathlib import Path

from measurement.table import read_rows
from verification.link_model import SEND, WIRE
from workload.errors import InputError

TABLE = Path(__file__).with_name("links.csv")


@dataclass(frozen=True)
class LinkCost:
    """Seconds of an operation: latency + bytes through a device's link / bandwidth."""

    latency_s: float
    bandwidth_bytes_per_s: float

    def seconds(self, wire_bytes: float) -> float:
        """For so many bytes through each device's link."""
        return self.latency_s + wire_bytes / self.bandwidth_bytes_per_s


Measured = Mapping[tuple[str, int], LinkCost]  # by operation and devices in the group


@dataclass(frozen=True)
class DataSheet:
    """A row of links.csv.

    Args:
        joins: "devices" of one node, or "nodes".
        bytes_per_s: through one link one way, as measured.
        per: what has a link of its own: a "device" or a "node".
        latency_s: of one hop.
    """

    joins: str
    bytes_per_s: float
    per: str
    latency_s: float


@dataclass(frozen=True)
class Links:
    """What an exchange costs in a group of devices.

    Args:
        within: one node.
        network: between nodes; None: all devices are in one node.
        node: devices in a node.
    """

    within: Measured
    network: DataSheet | None = None
    node: float = inf

    def cost(self, operation: str, devices: int, span: int) -> LinkCost:
        """In a group of devices that lie, evenly spread, among `span` neighbours.

        The devices of a node that take part share its links to other nodes with the groups of the node's other devices;
        through them goes what a ring sends. The latency is that of the network in every hop.

        Raises:
            KeyError: there is no link for groups of this size.
        """
        if self.network is None or span <= self.node:
            return self.within[operation, devices]
        part = max(int(devices * self.node // span), 1)  # of the group, in one node
        if operation == SEND:
            part = 1
        links = part if self.network.per == "device" else part / self.node
        inside = self.within[operation, part].bandwidth_bytes_per_s if part > 1 else inf
        return LinkCost(self.network.latency_s * hops(operation, devices),
                        min(inside, links * self.network.bytes_per_s))


def hops(operation: str, devices: int) -> float:
    """Messages that wait for each other: up and down a tree, around a ring, or one (NCCL's algorithms)."""
    return {"all-reduce": 2 * log2(devices), SEND: 1}.get(operation, devices - 1)


def extrapolated(measured: Measured, sizes: Iterable[int]) -> dict[tuple[str, int], LinkCost]:
    """Links for groups of more sizes: the bandwidth of the nearest size that was measured, its latency by hops.

    Raises:
        InputError: nothing was measured.
    """
    found, sizes = dict(measured), set(sizes) - {1}
    if sizes and not measured:
        raise InputError("the calibration was made on one device and has no links; name them with --link")
    for operation in WIRE:
        known = sorted(n for name, n in measured if name == operation)
        for n in sizes - set(known) if known else ():
            nearest = min(known, key=lambda size: abs(log2(size / n)))
            cost = measured[operation, nearest]
            found[operation, n] = LinkCost(cost.latency_s * hops(operation, n) / hops(operation, nearest),
                                           cost.bandwidth_bytes_per_s)
    return found


def by_data_sheet(sheet: DataSheet, sizes: Iterable[int]) -> dict[tuple[str, int], LinkCost]:
    """Links within a node."""
    return {(operation, n): LinkCost(sheet.latency_s * hops(operation, n), sheet.bytes_per_s)
            for operation in WIRE for n in sizes if n > 1}


def read_links() -> dict[str, DataSheet]:
    """The links of links.csv by name."""
    rows = read_rows(TABLE)
    hop = {row["link"]: 1e-6 * float(row["latency_us"]) / hops("all-reduce", int(row["latency_devices"]))
           for row in rows if row["latency_us"]}
    slowest = max(hop[row["link"]] for row in rows if row["joins"] == "nodes" and row["latency_us"])
    return {row["link"]: DataSheet(row["joins"], 1e9 * float(row["gb_per_s"]) * float(row["efficiency"]), row["per"],
                                   hop.get(row["link"], slowest)) for row in rows}


def links_of(measured: Measured, names: Iterable[str], sizes: Iterable[int], node: int) -> Links:
    """Measured links, with those of these names instead.

    Args:
        names: of links.csv; at most one that joins devices and one that joins nodes.
        sizes: of groups.
        node: devices in a node, where nodes are joined.

    Raises:
        InputError: there is no such link, or two that join the same.
    """
    sheets = read_links()
    for name in names:
        if name not in sheets:
            raise InputError(f"--link {name}: there is no such link; choose from {', '.join(sheets)}")
    chosen = {sheets[name].joins: sheets[name] for name in names}
    if len(chosen) < len(list(names)):
        raise InputError(f"--link {' '.join(names)}: give one link that joins devices, one that joins nodes, or both")
    sizes = set(sizes)
    sizes |= {2} if max(sizes) > 1 else set()  # neighbouring stages
    sizes |= set(range(2, node + 1)) if "nodes" in chosen and max(sizes) > 1 else set()  # of a group, in one node
    within = by_data_sheet(chosen["devices"], sizes) if "devices" in chosen else extrapolated(measured, sizes)
    network = chosen.get("nodes")
    return Links(within, network, node if network else inf)

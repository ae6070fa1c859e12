"""The GPUs that PyTorch sees, in its numbering, and which of them reach each other, and how."""

import itertools
import os
from typing import Any

import pynvml
import torch

from measurement.environment import devices_of_rank
from measurement.nvml import Gpu
from workload.launch.gpus import visible_gpus, why_none

# Where the paths of two GPUs meet: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html
PATHS = {pynvml.NVML_TOPOLOGY_INTERNAL: "one board", pynvml.NVML_TOPOLOGY_SINGLE: "one PCIe switch",
         pynvml.NVML_TOPOLOGY_MULTIPLE: "several PCIe switches", pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PCIe on one CPU",
         pynvml.NVML_TOPOLOGY_NODE: "PCIe on one CPU", pynvml.NVML_TOPOLOGY_SYSTEM: "PCIe and the link between CPUs"}
P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which pynvml defines as a tuple by mistake
OFF_BECAUSE = {pynvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED: "the chipset does not support it",
               pynvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED: "the GPUs do not support it",
               pynvml.NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED: "the path between CPUs does not support it",
               pynvml.NVML_P2P_STATUS_DISABLED_BY_REGKEY: "the driver's settings switch it off"}


class LinkedGpu(Gpu):
    """A GPU and what NVML says about its clocks and links; what it does not say is None."""

    def state(self) -> dict[str, Any]:
        """Memory in use in GiB, clocks in MHz, throttling, and the number of active NVLinks."""
        sample = self.sample()
        states = [self._read(pynvml.nvmlDeviceGetNvLinkState, link) for link in range(pynvml.NVML_NVLINK_MAX_LINKS)]
        return {"used_gib": sample["memory_gib"], "sm_clock_mhz": sample["sm_clock_mhz"],
                "max_sm_clock_mhz": self._read(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
                "throttled": sample["throttled"], "nvlinks": states.count(pynvml.NVML_FEATURE_ENABLED)}

    def link_to(self, other: "LinkedGpu") -> str | None:
        """How the two are connected: "NVLink", or the path through PCIe."""
        if self._p2p(other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK:
            return "NVLink"
        level = self._read(pynvml.nvmlDeviceGetTopologyCommonAncestor, other.handle)
        return None if level is None else PATHS.get(level)

    def no_peer_access(self, other: "LinkedGpu") -> str | None:
        """Why the two have no peer access, if the driver knows."""
        status = self._p2p(other, P2P_READ)
        return None if status is None else OFF_BECAUSE.get(status)

    def _p2p(self, other: "LinkedGpu", capability: int) -> int | None:
        return self._read(pynvml.nvmlDeviceGetP2PStatus, other.handle, capability)


def describe_gpus() -> dict[str, Any]:
    """The part of `describe_machine` about GPUs. Asks CUDA for properties only, which needs no context.

    Returns:
        `gpus`: a dictionary per GPU; `no_gpu`: why there is none; `peers`: a dictionary per pair of GPUs; `driver`: its
        version; `nvml_problem`: why NVML cannot be read.
    """
    driver = problem = None
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        problem = str(error)
    described, handles = [], []
    for number in range(visible_gpus()):
        [gpu] = devices_of_rank([torch.device("cuda", number)])["devices"]
        try:
            handles.append(None if problem else LinkedGpu(gpu["gpu_uuid"]))
        except pynvml.NVMLError:
            handles.append(None)
        is_mig = gpu["gpu_uuid"].startswith("MIG")
        described.append(gpu | {"is_mig": is_mig} | (handles[-1].state() if handles[-1] else {}))
    pairs = itertools.combinations(range(len(described)), 2)
    return {"gpus": described, "no_gpu": None if described else why_none(), "driver": driver,
            "nvml_problem": problem, "peers": [_pair(a, b, handles[a], handles[b]) for a, b in pairs]}


def _pair(a: int, b: int, one: LinkedGpu | None, other: LinkedGpu | None) -> dict[str, Any]:
    has_access = torch.cuda.can_device_access_peer(a, b) and torch.cuda.can_device_access_peer(b, a)
    reason = link = None
    if one and other:
        link, reason = one.link_to(other), None if has_access else one.no_peer_access(other)
    if os.environ.get("NCCL_P2P_DISABLE", "0") != "0":
        has_access, reason = False, f"NCCL_P2P_DISABLE={os.environ['NCCL_P2P_DISABLE']} switches it off"
    return {"gpus": [a, b], "link": link, "peer_access": has_access, "reason": reason}

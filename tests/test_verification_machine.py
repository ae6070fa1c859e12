"""What is said about a machine and its links, from made-up ones with known answers, and from this one."""

import json
import re
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

from measurement.environment import GIB, cpu_name
from tests.shared.runs import ONE_PROCESS
from verification import host, links
from verification.gpus import describe_gpus
from verification.link_model import MIB, SEND, WIRE, fit, in_fractions, link_lines, wire_bytes
from verification.machine import describe_machine, hardware_name, machine_lines, machine_warnings, slow_link
from workload.errors import InputError
from workload.launch import gpus

ALL = (0, 1, 2, 3)
PAIRS = [(a, b) for a in ALL for b in ALL if a < b]


def gpu(number: int, **changed) -> dict:
    return {"device": f"cuda:{number}", "gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_gib": 79.6, "is_mig": False,
            "gpu_uuid": f"GPU-{number}", "used_gib": 0.6, "sm_clock_mhz": 345, "max_sm_clock_mhz": 1980,
            "throttled": "no", "nvlinks": 18} | changed


def peer(pair: tuple[int, int], link: str = "NVLink", off: bool = False, reason: str | None = None) -> dict:
    return {"gpus": list(pair), "link": link, "peer_access": not off, "reason": reason}


def description(**changed) -> dict:
    """A machine with four GPUs on which nothing stands out."""
    disk = {"folder": "results", "total_gib": 900.0, "free_gib": 512.25}
    return {"gpus": [gpu(number) for number in ALL], "no_gpu": None, "driver": "580.65", "nvml_problem": None,
            "peers": [peer(pair) for pair in PAIRS], "processes": 4, "hip": None, "settings": [],
            "versions": {"torch": "2.13.0", "cuda": "13.0", "nccl": "2.28.9"}, "cpu": "EPYC", "cores": 16,
            "memory_gib": 128.0, "available_memory_gib": 120.0, "container_memory_gib": None,
            "shm": {"folder": "/dev/shm", "total_gib": 64.0, "free_gib": 63.0}, "open_files": 65536,
            "compiler": "g++ 12", "disk": {"results": disk},
            "hub": {"state": "can be reached", "is_unreachable": False}} | changed


def test_a_good_machine_in_lines():
    assert machine_lines(description()) == [
        *(f"GPU {number}: NVIDIA H100 80GB HBM3, 79.6 GiB, GPU-{number}, SM clock 345 of at most 1980 MHz, 18 NVLinks"
          for number in ALL),
        "driver 580.65", "links: all 6 pairs of GPUs by NVLink", "PyTorch 2.13.0, built for CUDA 13.0; NCCL 2.28.9",
        "CPU: EPYC, 16 cores for this process", "memory: 120.0 of 128.0 GiB available",
        "/dev/shm: 63.00 of 64.00 GiB free", "open files: at most 65536 in a process", "C++ compiler: g++ 12",
        "Hugging Face Hub: can be reached", "disk: 512.2 GiB free for results (results)"]


@pytest.mark.parametrize("changed, words", [
    ({"shm": {"folder": "/dev/shm", "total_gib": 0.0625, "free_gib": 0.06}}, "/dev/shm is only 64 MiB; .*--shm-size"),
    ({"shm": None}, "/dev/shm is missing"),
    ({"open_files": 256}, "at most 256 open files in a process, .*; use ulimit -n 1024"),
    ({"compiler": None}, r"no C\+\+ compiler"),
    ({"hub": {"state": "cannot be reached", "is_unreachable": True}}, "Hub cannot be reached; only cached or local"),
    ({"gpus": [gpu(0, is_mig=True)], "peers": []}, r"GPU 0 is a part of a GPU \(MIG\)"),
    ({"gpus": [gpu(0), gpu(1, throttled="power cap")]}, r"GPU 1 is slowed down \(power cap\)"),
    ({"gpus": [gpu(0, used_gib=40.0)]}, "GPU 0 is in use: 40.0 of 79.6 GiB"),
    ({"peers": [peer(pair, "one PCIe switch", True) for pair in PAIRS]},
     "peer access is off between all 6 pairs of GPUs; their data passes through the host's memory"),
    ({"peers": [peer(pair, off=pair == (0, 3), reason="the chipset does not support it") for pair in PAIRS]},
     "peer access is off between GPU 0 and 3: the chipset does not support it; "),
])
def test_what_stands_out_is_a_warning(changed, words):
    [warning] = machine_warnings(description(**changed))
    assert re.search(words, warning)
    assert machine_lines(description(**changed))[-1] == f"warning: {warning}"


def test_links_of_several_kinds():
    peers = [peer(pair, "NVLink" if pair in ((0, 1), (2, 3)) else "PCIe and the link between CPUs") for pair in PAIRS]
    lines = machine_lines(description(peers=peers))
    assert "links: GPU 0 and 1, GPU 2 and 3 by NVLink" in lines
    assert slow_link({"peers": peers}, 3, 0) == "their path is PCIe and the link between CPUs"
    assert slow_link({"peers": peers}, 0, 1) is slow_link({"peers": []}, 0, 1) is None


def test_this_machine_in_json_within_ten_seconds():
    began = time.monotonic()
    described = describe_machine(2)
    lines = machine_lines(json.loads(json.dumps(described)))
    assert time.monotonic() - began < 10
    assert described["cores"] >= 1 and described["memory_gib"] > described["available_memory_gib"] > 0
    assert described["disk"]["results"]["free_gib"] > 0
    if not torch.cuda.is_available():
        assert described["gpus"] == described["peers"] == []
        assert lines[0].startswith("no GPU: ") and not [line for line in lines[1:] if "GPU" in line]
        assert hardware_name(2) == hardware_name() == f"CPU {cpu_name()}"


def test_settings_of_libraries_are_part_of_the_hardware(monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    assert hardware_name().endswith(", NCCL_ALGO=Ring")
    assert "settings of libraries: NCCL_ALGO=Ring" in machine_lines(describe_machine())


def test_the_hardware_of_a_run_has_the_same_name(train):
    assert hardware_name(1) == train(*ONE_PROCESS).summary["hardware"]


def test_the_hub_is_not_asked_where_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(host.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(host, "get_session", lambda: pytest.fail("it was asked"))
    assert host.HubCheck().answer() == {"state": "not used (HF_HUB_OFFLINE is set)", "is_unreachable": False}


@pytest.mark.parametrize("status, problem", [(200, None), (403, "status 403"), (503, "status 503")])
def test_the_hubs_answer(status, problem, monkeypatch):
    monkeypatch.setattr(host.constants, "HF_HUB_OFFLINE", False)
    answer = SimpleNamespace(head=lambda url, timeout: SimpleNamespace(status_code=status))
    monkeypatch.setattr(host, "get_session", lambda: answer)
    found = host.HubCheck().answer()
    assert found["is_unreachable"] == (problem is not None) and (problem or "can be reached") in found["state"]


def test_a_hub_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(host.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(host, "HUB_TIMEOUT_S", 0.1)
    monkeypatch.setattr(host, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: time.sleep(3)))
    assert host.HubCheck().answer()["state"] == "cannot be reached (no answer in time)"


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs of a made-up PyTorch and NVML: 4 NVLinks each, no peer access, for the driver switches it off."""
    names = ["NVIDIA A100", "NVIDIA H100"]
    cuda = {"is_available": lambda: True, "device_count": lambda: 2, "can_device_access_peer": lambda a, b: False,
            "get_device_properties": lambda device: SimpleNamespace(
                name=names[device.index], uuid=f"{device.index}", total_memory=80 * GIB)}
    nvml = {"nvmlInit": lambda: None, "nvmlSystemGetDriverVersion": lambda: "580.65", "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=GIB), "nvmlDeviceGetPowerUsage": refuse,
            "nvmlDeviceGetUtilizationRates": refuse, "nvmlDeviceGetTemperature": refuse,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x04,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1200, "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetNvLinkState": lambda handle, link: int(link < 4) if link < 12 else refuse(),
            "nvmlDeviceGetTopologyCommonAncestor": lambda handle, other: pynvml.NVML_TOPOLOGY_SYSTEM,
            "nvmlDeviceGetP2PStatus": lambda a, b, kind: pynvml.NVML_P2P_STATUS_DISABLED_BY_REGKEY}
    for module, answers in ((torch.cuda, cuda), (pynvml, nvml)):
        for name, answer in answers.items():
            monkeypatch.setattr(module, name, answer)


def refuse(*_):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_gpus_as_pytorch_and_nvml_see_them(two_gpus):
    found = describe_gpus()
    assert found["driver"] == "580.65" and found["no_gpu"] is found["nvml_problem"] is None
    assert [(each["device"], each["gpu"], each["gpu_uuid"], each["is_mig"], each["nvlinks"], each["throttled"])
            for each in found["gpus"]] == [("cuda:0", "NVIDIA A100", "GPU-0", False, 4, "power cap"),
                                           ("cuda:1", "NVIDIA H100", "GPU-1", False, 4, "power cap")]
    assert (found["gpus"][0]["sm_clock_mhz"], found["gpus"][0]["max_sm_clock_mhz"]) == (1200, 1980)
    assert found["peers"] == [{"gpus": [0, 1], "link": "PCIe and the link between CPUs", "peer_access": False,
                               "reason": "the driver's settings switch it off"}]
    assert hardware_name() == "NVIDIA A100 + NVIDIA H100" and hardware_name(1) == "NVIDIA A100"


def test_peer_access_that_nccl_is_told_not_to_use(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)
    assert describe_gpus()["peers"][0]["peer_access"]
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert describe_gpus()["peers"][0]["reason"] == "NCCL_P2P_DISABLE=1 switches it off"


def test_gpus_without_nvml(two_gpus, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    found = describe_gpus()
    assert len(found["gpus"]) == 2 and found["nvml_problem"] and found["peers"][0]["link"] is None
    lines = machine_lines(description(**found))
    assert "GPU 0: NVIDIA A100, 80.0 GiB, GPU-0" in lines
    assert any(line.startswith("no clocks, power or energy: NVML cannot be read") for line in lines)


def test_gpus_that_pytorch_does_not_see(two_gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: 13000)
    assert describe_gpus()["no_gpu"].startswith("this machine has 2 NVIDIA GPUs that PyTorch cannot use: driver 580.65")
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    monkeypatch.setattr(gpus, "DEV", tmp_path)
    assert describe_gpus()["no_gpu"] == f"PyTorch {torch.__version__} is built for CPUs only"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert describe_gpus()["no_gpu"] == f"PyTorch {torch.__version__} (built for CUDA 13.0) finds none"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert describe_gpus()["no_gpu"] == "hidden by CUDA_VISIBLE_DEVICES or --device cpu"


# ---------------------------------------------------------------------- links

def row(operation: str, ranks: tuple[int, ...], size: int, seconds: float, spread: float = 0.0) -> dict:
    return {"operation": operation, "ranks": list(ranks), "bytes": size, "seconds": seconds, "spread": spread,
            "repeats": 7}


def measured(rows: list[dict], left_out: tuple[dict, ...] = ()) -> dict:
    return {"device": "cuda", "backend": "nccl", "ranks": 4, "rows": rows, "left_out": list(left_out)}


@pytest.mark.parametrize("operation", WIRE)
def test_the_fit_of_a_link_with_a_known_latency_and_bandwidth(operation):
    ranks = (0, 1) if operation == SEND else ALL
    rows = [row(operation, ranks, size, 0.0) for size in (2**16, MIB, 16 * MIB, 256 * MIB)]
    for each in rows:
        each["seconds"] = 2e-5 + wire_bytes(each) / 5e10
    [found] = fit(rows)
    assert found["latency_s"] == pytest.approx(2e-5) and found["bandwidth_bytes_per_s"] == pytest.approx(5e10)
    assert found["error_pct"] == 0 and (found["operation"], found["ranks"]) == (operation, list(ranks))


def test_wire_bytes_of_a_ring():
    assert [wire_bytes(row(operation, ALL, 1000, 1)) for operation in WIRE] == [1500, 750, 750, 750, 1000]


def test_a_fit_has_no_negative_latency_or_bandwidth():
    rising, falling = ([row(SEND, (0, 1), MIB, 1), row(SEND, (0, 1), 16 * MIB, last)] for last in (100, 0.5))
    assert fit(rising)[0]["latency_s"] == 0 and fit(rising)[0]["bandwidth_bytes_per_s"] > 0
    assert fit(falling)[0]["bandwidth_bytes_per_s"] is None and 0.5 < fit(falling)[0]["latency_s"] < 1
    assert fit(rising[:1]) == []


def test_links_in_lines():
    rows = [row("all-reduce", ALL, 2**16, 45e-6), row("all-reduce", ALL, 256 * MIB, 1.5 * 256 * MIB / 230e9),
            *(row(SEND, pair, 16 * MIB, 16 * MIB / 40e9) for pair in PAIRS)]
    late = {"operation": SEND, "ranks": [0, 1], "reason": "no time was left"}
    assert link_lines(measured(rows, (late | {"bytes": 64 * MIB}, late | {"bytes": 256 * MIB}))) == [
        "links: 4 GPUs, nccl; GB/s through each GPU's link",
        "all-reduce: 230 GB/s at 256 MiB, 45 us at 64 KiB",
        "send/receive from GPU 0 to 1: 40 GB/s at 16 MiB, 419 us at 16 MiB",
        "not measured: send/receive between GPU 0 and 1 of 64 MiB, 256 MiB: no time was left",
        "pairs: 40 to 40 GB/s at 16 MiB"]


def test_a_slow_pair_is_named_with_the_reason_that_is_known():
    rows = [row(SEND, pair, 16 * MIB, 16 * MIB / (4e9 if pair == (0, 3) else 40e9)) for pair in PAIRS]
    machine = {"peers": [peer(pair, off=pair == (0, 3)) for pair in PAIRS]}
    lines = link_lines(measured(rows), lambda a, b: slow_link(machine, a, b))
    assert lines[-2:] == ["pairs: 4 to 40 GB/s at 16 MiB",
                          "warning: GPU 0 and 3 exchange data at a tenth of the other pairs' rate: peer access is off"]
    assert link_lines(measured(rows))[-1].endswith("at a tenth of the other pairs' rate (4 GB/s)")


def test_measurements_that_scatter_are_no_calibration():
    steady, unsteady = ([row("all-reduce", ALL, MIB, 0.01, spread)] for spread in (0.002, 0.02))
    assert not any("warning" in line for line in link_lines(measured(steady)))
    assert link_lines(measured(unsteady))[-1].startswith("warning: repeated measurements differ by 200 %")


@pytest.mark.parametrize("ratio, words", [(0.5, "half"), (0.1, "a tenth"), (0.26, "a quarter"), (0.05, "1/20")])
def test_fractions_in_words(ratio, words):
    assert in_fractions(ratio) == words


def check_links(file, device: str, count: int) -> None:
    found = json.loads(file.read_text())
    assert (found["device"], found["ranks"]) == (device, count) and found["hardware"]
    operations = {each["operation"] for each in found["rows"]}
    assert operations == set(WIRE)
    for each in found["rows"]:
        assert each["seconds"] > 0 and each["spread"] >= 0 and each["repeats"] >= 1
        assert each["ranks"] == list(range(count)) or each["operation"] == SEND
    exchanged = {tuple(each["ranks"]) for each in found["rows"] + found["left_out"] if each["operation"] == SEND}
    assert exchanged == {(a, b) for a in range(count) for b in range(a + 1, count)}
    assert {each["operation"] for each in found["fits"]} <= operations


def test_links_between_cpu_processes(start, tmp_path):
    out = tmp_path / "new" / "links.json"
    done = start("torchrun", "--nproc-per-node", "3", "-m", "verification.links", out, "--seconds", "3")
    assert done.returncode == 0, done.stderr
    check_links(out, "cpu", 3)
    assert done.stdout.startswith("links: 3 processes, gloo") and "Warning" not in done.stderr


@pytest.mark.parametrize("processes, gpus, message", [
    ("1", 0, "links need two processes or more; start with torchrun --nproc-per-node 2 -m verification.links out.json"),
    ("4", 2, "this machine shows 2 GPUs; use --nproc-per-node 2")])
def test_processes_that_cannot_be_measured(processes, gpus, message, launched, monkeypatch):
    launched(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
    monkeypatch.setattr(links, "visible_gpus", lambda: gpus)
    monkeypatch.setattr("sys.argv", ["links", "out.json"])
    with pytest.raises(InputError, match=re.escape(message)):
        links.main()


def test_links_between_pretended_gpus(pretended_gpus, start_ranks, tmp_path):
    done = start_ranks("verification/links.py", tmp_path / "links.json", "--seconds", "3", count=2, pretended_gpus=2,
                       check=True)
    check_links(tmp_path / "links.json", "cuda", 2)
    assert done.stdout.startswith("links: 2 GPUs, nccl")

"""Which devices are used: GPUs that PyTorch cannot use are refused in one line, and `--device cpu` hides all."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pynvml
import pytest
import torch

from tests.shared.runs import ONE_PROCESS, ROOT, SAMPLE, assert_same_computation
from verification.proof import torchrun
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError
from workload.launch import gpus
from workload.launch.start import devices_asked_for

LOCKS = ("requirements-cpu.lock", "requirements-cuda.lock")
TOO_OLD = ("CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). (Triggered "
           "internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)")
NOT_READY = ("CUDA initialization: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized "
             "(Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A made-up machine without GPUs; called, it gets some, and another build of PyTorch that sees none of them."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DEV", tmp_path)
    monkeypatch.setattr(gpus, "_cuda_errors", [])

    def machine(files=(), driver=None, count=0, build=None, hip=None, warning=None):
        """`driver`: its version and its CUDA as NVML says it (12020 for 12.2); None: NVML cannot be read."""
        for name in files:
            (tmp_path / name).touch()

        def init():
            if driver is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

        def is_available():
            if warning:
                warnings.warn(warning, stacklevel=1)
            return False

        monkeypatch.setattr(pynvml, "nvmlInit", init)
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: driver[0])
        monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: driver[1])
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)  # from NVML, whatever the driver supports
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.version, "hip", hip)
    machine()
    return machine


@pytest.mark.parametrize("found, words", [
    ({"driver": ("535.161.08", 12020), "count": 4, "build": "13.0", "warning": TOO_OLD},
     ["has 4 NVIDIA GPUs that", "driver 535.161.08 supports CUDA 12.2", "needs CUDA 13.0", "make install CUDA=12.6"]),
    ({"driver": ("535.161.08", 12020), "count": 1}, ["has 1 NVIDIA GPU that", "built for CPUs only", "CUDA=12.6"]),
    ({"driver": ("580.65", 13000), "count": 1}, ["driver 580.65 supports CUDA 13.0", "CPUs only", "CUDA=13.0"]),
    ({"driver": ("470.82", 11040), "count": 1, "build": "12.6"}, ["supports CUDA 11.4", "install driver 525 or newer"]),
    ({"driver": ("580.65", 13000), "count": 8, "build": "13.0", "warning": NOT_READY},
     ["CUDA reports error 802: system not yet initialized", "fix the driver"]),
    ({"files": ["nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1"], "build": "13.0"},
     ["has 2 NVIDIA GPUs", "cannot be read (NVML Shared Library Not Found)", "needs CUDA 13.0", "nvidia-smi"]),
    ({"files": ["nvidia0"], "driver": ("580.65", 13000), "build": "13.0"}, ["none of them", "your job ask for GPUs"]),
    ({"files": ["kfd"]}, ["an AMD GPU", "CPUs only, not ROCm", "docs/running.md"]),
    ({"files": ["kfd"], "build": "13.0"}, ["an AMD GPU", "needs CUDA 13.0, not ROCm"]),
    ({"files": ["kfd"], "hip": "7.2"}, ["an AMD GPU", "built for ROCm 7.2", "/dev/kfd", "render"]),
])
def test_gpus_that_pytorch_cannot_use_are_refused(found, words, machine, monkeypatch):
    machine(**found)
    with warnings.catch_warnings(), pytest.raises(InputError) as refusal:
        warnings.simplefilter("error")  # PyTorch's own words would be a second line
        devices_asked_for(num_gpus=4)
    line = str(refusal.value)
    assert all(word in line for word in words) and line.endswith("or use --device cpu") and "\n" not in line, line
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_asked_for(num_gpus=4) == 4 and gpus.device_type() == "cpu"


def test_gpus_that_are_not_there_are_named(machine, monkeypatch):
    machine(driver=("580.65", 13000), count=2, build="13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES=7 names none of them"):
        devices_asked_for(None)


@pytest.mark.parametrize("name, value, hip, is_hidden", [
    ("CUDA_VISIBLE_DEVICES", "-1", None, True), ("CUDA_VISIBLE_DEVICES", "NoDevFiles", None, True),
    ("CUDA_VISIBLE_DEVICES", "GPU-8932f937", None, False), ("CUDA_VISIBLE_DEVICES", "0", None, False),
    ("HIP_VISIBLE_DEVICES", "", "7.2", True), ("HIP_VISIBLE_DEVICES", "", None, False)])
def test_variables_that_choose_the_cpu(name, value, hip, is_hidden, machine, monkeypatch):
    machine(files=["kfd", "nvidia0"], hip=hip)
    monkeypatch.setenv(name, value)
    if is_hidden:
        gpus.check_gpus()
    else:
        with pytest.raises(InputError):
            gpus.check_gpus()


def test_a_machine_without_gpus_is_not_refused(machine):
    machine(files=["nvidiactl", "nvidia-uvm", "null"], driver=("580.65", 13000))
    assert devices_asked_for(num_gpus=3) == 3 and devices_asked_for(None) == 1
    assert devices_asked_for(None, without_gpus=2) == 2 and devices_asked_for(1, without_gpus=2) == 1
    with pytest.raises(InputError, match="--num_gpus 0: use at least 1"):
        devices_asked_for(0)


def test_device_cpu_hides_the_gpus_of_every_vendor(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # both are put back after the test
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    machine(files=["nvidia0", "kfd"], hip="7.2")
    assert parse_arguments(Arguments, ["--device", "cpu"]).device == "cpu"
    assert devices_asked_for(num_gpus=2) == 2
    assert gpus.why_none() == "hidden by CUDA_VISIBLE_DEVICES or --device cpu"
    assert torchrun(2, "verification.exact")[1]["CUDA_VISIBLE_DEVICES"] == "-1", "what verify.py starts inherits it"
    with pytest.raises(InputError, match="--device.*cuda.*cpu"):
        parse_arguments(Arguments, ["--device", "cuda"])


def test_more_processes_than_memory_holds_are_refused_before_they_fill_it(machine):
    machine()
    with pytest.raises(InputError, match=r"^--num_gpus 100000: this machine shows no GPU, .* at most \d+$") as caught:
        devices_asked_for(100_000)
    assert devices_asked_for(int(str(caught.value).split()[-1])) > 1


def test_gpus_that_can_no_longer_be_hidden_are_no_cpu(monkeypatch):
    """CUDA reads the variable once; then `--device cpu` must not train on GPUs in silence."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RuntimeError, match="before they were hidden"):
        gpus.use_cpu()


ASKED_EARLY = """
import sys, torch
asked = []
for owner in (torch.cuda, torch.accelerator):
    for name in ("is_available", "device_count", "_lazy_init", "current_accelerator"):
        if hasattr(owner, name):
            setattr(owner, name, lambda *_, name=name, **__: asked.append(name))
for script in sys.argv[1:]:
    __import__(script)
print(asked)
"""


def test_no_script_looks_for_gpus_before_its_flags_are_read():
    scripts = [path.stem for path in ROOT.glob("*.py") if "parse_arguments" in path.read_text(encoding="utf-8")]
    assert len(scripts) >= 8
    done = subprocess.run([sys.executable, "-c", ASKED_EARLY, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


# ---------------------------------------------------------------------- real processes

@pytest.fixture
def old_driver(environment, monkeypatch, tmp_path):
    """A driver that is too old for PyTorch, in every Python process that is started."""
    (tmp_path / "sitecustomize.py").write_text("""
import pynvml
pynvml.nvmlInit, pynvml.nvmlDeviceGetCount = lambda: None, lambda: 4
pynvml.nvmlSystemGetDriverVersion, pynvml.nvmlSystemGetCudaDriverVersion_v2 = lambda: "535.161.08", lambda: 12020
""")
    monkeypatch.setitem(environment, "PYTHONPATH", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delitem(environment, name, raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees GPUs")
@pytest.mark.parametrize("script", ["bert_baseline.py", "verify.py"])
def test_the_refusal_is_one_line_and_exit_code_2(script, start, old_driver, tmp_path):
    done = start(sys.executable, script, "--num_gpus", "2", "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: this machine has 4 NVIDIA GPUs") and "CUDA=12.6" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees GPUs")
def test_device_cpu_trains_beside_an_old_driver(start, old_driver, tmp_path):
    done = start(sys.executable, "bert_baseline.py", *SAMPLE, "--num_gpus", "2", "--device", "cpu", "--max_steps", "1",
                 "--max_eval_examples", "4", "--cpu_threads", "1", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("bert_baseline.py",), ("zero.py", "--stage", "2"), ("hf_trainer.py",),
                                     ("data_parallel.py",)])
def test_device_cpu_on_pretended_gpus(command, pretended_gpus, train):
    run = pretended_gpus(1, *command, "--device", "cpu")
    devices = [device for rank in run.description["ranks"] for device in rank["devices"]]
    assert [device["device"] for device in devices] == ["cpu"]
    assert run.summary["hardware"].startswith("CPU ") and run.description["flags"]["device"] == "cpu"
    assert_same_computation(run, train(*ONE_PROCESS))


# ---------------------------------------------------------------------- make install

def commands(folder, *flags: str) -> subprocess.CompletedProcess:
    # As a user's shell starts it: under `make test`, MAKEFLAGS would carry the outer make's options into this one.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", "-n", "install", *flags], cwd=folder, env=outside, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    if not shutil.which("make"):
        pytest.skip("no make")
    for name in ("Makefile", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


@pytest.mark.parametrize("cuda, build", [("12.6", "cu126"), ("13.0", "cu130"), ("cpu", "cpu")])
def test_make_install_with_another_build(cuda, build, clone):
    [version] = re.findall(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    [install] = [line for line in commands(clone, f"CUDA={cuda}").stdout.splitlines() if "pip install" in line]
    lock = "requirements-cuda.lock" if cuda == "13.0" else "requirements-cpu.lock"
    assert install.endswith(f"-r {lock} torch=={version}+{build} "
                            f"--extra-index-url https://download.pytorch.org/whl/{build}")
    (clone / ".venv" / f"installed-{cuda}").touch()
    for flags in ((), (f"CUDA={cuda}",)):  # the build stays until another is named
        assert "Nothing to be done" in commands(clone, *flags).stdout


def test_make_install_without_a_build_is_as_it_was(clone, monkeypatch):
    monkeypatch.setenv("CUDA", "/usr/local/cuda")  # as some clusters do
    done = commands(clone)
    assert "download.pytorch.org" not in done.stdout and "--clear" not in done.stdout
    [install] = [line for line in done.stdout.splitlines() if "pip install" in line]
    lock = "requirements-cuda.lock" if Path("/proc/driver/nvidia/version").exists() else "requirements-cpu.lock"
    assert install.rstrip().endswith(f"-r {lock}") and "touch .venv/installed\n" in done.stdout


def test_the_locks_hold_what_is_required_and_differ_by_libraries_for_cuda():
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {line.split("#")[0].strip() for line in lines} - {""}

    cpu, cuda = (pins(name) for name in LOCKS)
    required = {re.sub(r"\[.*\]", "", pin) for pin in pins("requirements.txt")}
    assert required <= cpu, f"make lock: {sorted(required - cpu)}"
    assert cpu < cuda
    assert all(re.match("nvidia-|cuda-|triton==", pin) for pin in cuda - cpu)


def test_another_build_begins_a_new_environment(clone):
    (clone / ".venv" / "installed").touch()
    assert "Nothing to be done" in commands(clone).stdout
    assert "-m venv --clear .venv" in commands(clone, "CUDA=12.6").stdout


def test_an_unknown_build_is_one_line(clone):
    done = commands(clone, "CUDA=11.8")
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "CUDA=11.8" in done.stderr and all(build in done.stderr for build in gpus.DRIVERS) and "cpu" in done.stderr


def test_the_documents_say_which_build_a_driver_needs():
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for build, driver in gpus.DRIVERS.items():
        assert re.search(rf"^\| {driver}\b.*`make install CUDA={build}`", text, re.MULTILINE), build

"""Several nodes: two launchers on this machine stand for two nodes; what SLURM's jobs would start is looked at."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

import workload.arguments
from tests.shared.runs import EXACT, ONE_PROCESS, ROOT, FinishedRun, assert_same_computation, stray_lines
from workload.errors import InputError
from workload.launch.start import devices_asked_for, free_port

JOBS = sorted(ROOT.glob("experiments/slurm/*.sbatch"))
TORCHRUN = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]


@pytest.fixture
def train_on_two_nodes(environment, tmp_path):
    """Start a launcher for each of two nodes, and wait for both."""
    def train(launchers: list[list[str]], *script: str) -> FinishedRun:
        words = [*script, *EXACT, "--output_dir", str(tmp_path)]
        nodes = [subprocess.Popen([*launcher, *words], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) for launcher in launchers]
        try:
            outputs = [node.communicate(timeout=240) for node in nodes]
        finally:
            for node in nodes:
                node.terminate()  # nothing, if it has ended
        assert [node.returncode for node in nodes] == [0, 0], outputs
        [folder] = [path.parent for path in tmp_path.glob("*/run.json")]
        main = max(outputs, key=lambda output: len(output[0]))
        return FinishedRun(folder, subprocess.CompletedProcess(words, 0, *main))
    return train


def assert_record_of_two_nodes(run: FinishedRun) -> None:
    assert run.summary["devices"] == run.summary["nodes"] == "2"
    assert [rank["node"] for rank in run.description["ranks"]] == [0, 1]
    assert [row["node"] for row in run.rows("ranks.csv")] == ["0", "1"]
    assert run.rows("devices.csv") and run.rows("devices-node1.csv"), "each node records its own devices"
    assert all(float(row["peak_memory_gib"]) > 0 for row in run.rows("ranks.csv"))
    assert "-2dev-2nodes-" in run.folder.name


def test_two_torchruns_carry_a_pipeline_with_a_stage_on_each_node(train_on_two_nodes, train, tmp_path):
    logs = tmp_path / "logs"
    torchrun = [*TORCHRUN, "--rdzv-endpoint", f"localhost:{free_port()}", "--redirects", "3", "--log-dir", str(logs)]
    run = train_on_two_nodes([torchrun, torchrun], "pipeline.py")
    assert_same_computation(run, train(*ONE_PROCESS))
    assert_record_of_two_nodes(run)
    assert [rank["stage"] for rank in run.description["ranks"]] == [0, 1]
    # What the ranks print: torchrun complains of its own, if the node that keeps the rendezvous ends before the other.
    out, err = ("".join(path.read_text() for path in logs.rglob(f"{stream}.log")) for stream in ("stdout", "stderr"))
    assert "samples" in out and not stray_lines(subprocess.CompletedProcess([], 0, out, err))


def test_two_deepspeed_launchers_carry_a_pipeline(train_on_two_nodes, train, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    deepspeed = ["deepspeed", "--hostfile", str(hosts), "--no_ssh", "--no_local_rank", "--log_level", "error",
                 "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--node_rank"]
    run = train_on_two_nodes([[*deepspeed, "0"], [*deepspeed, "1"]], "pipeline.py")
    assert_same_computation(run, train(*ONE_PROCESS))
    assert_record_of_two_nodes(run)
    assert [rank["stage"] for rank in run.description["ranks"]] == [0, 1]
    assert run.description["command"].startswith("pipeline.py --sample ")


@pytest.mark.parametrize("name", ["GROUP_WORLD_SIZE", "CROSS_SIZE"])
def test_devices_are_those_of_all_nodes(name, launched):
    launched(WORLD_SIZE="8", SLURM_STEP_NUM_TASKS="2", **{name: "2"})  # srun started the launchers
    assert devices_asked_for(None) == devices_asked_for(8) == 8
    with pytest.raises(InputError, match="--num_gpus 4: the launcher started 8 processes on 2 nodes"):
        devices_asked_for(4)


# ---------------------------------------------------------------------- SLURM's jobs

FAKES = {
    "srun": 'printf "srun "; printf "%q " "$@"; echo',
    "python": 'printf "python "; printf "%q " "$@"; echo',
    "scontrol": '[[ $1 == show ]] && printf "%s\\n" node1 node2 node3 || echo "scontrol $*"',
}


@pytest.fixture
def job(tmp_path):
    """Run a command as a job of 2 nodes with 4 GPUs each would, but for programs that only say how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in FAKES.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2",
                   "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "16",
                   "DEVICES_A_NODE": "4", "RESULTS": str(tmp_path)}

    def run(*words, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(words, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=60)
    return run


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_can_be_read_and_asks_for_what_it_needs(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    options = set(re.findall(r"^#SBATCH (--[a-z-]+)", text, re.M))
    assert {"--time", "--requeue", "--open-mode", "--signal", "--nodes", "--gpus-per-node", "--cpus-per-task",
            "--output"} <= options
    assert f"#SBATCH --job-name={path.stem}\n" in text
    assert "source experiments/slurm/cluster.sh\n" in text and "\nstudy " in text, "nobody else heeds the signal"
    for script in re.findall(r"\bexperiments/[\w/]+\.(?:sh|py)\b", text):
        assert (ROOT / script).is_file()
    for script, words in re.findall(r"^# .*\.sbatch (\w+\.py)(.*)", text, re.M):  # as the head of the file shows it
        assert_flags_exist(script, words.split())


def assert_flags_exist(script: str, words: list[str]) -> None:
    kind = re.search(r"parse_arguments\((\w+)\)", (ROOT / script).read_text())[1]
    flags = {f"--{field.name}" for field in dataclasses.fields(getattr(workload.arguments, kind))}
    assert {word for word in words if word.startswith("--")} <= flags


def test_a_training_goes_over_as_many_nodes_as_it_needs(job):
    launch = ROOT / "experiments/slurm/launch.sh"
    one = job(launch, "zero.py", "--num_gpus", "4", "--stage", "3")
    assert one.stdout.split() == ["python", "zero.py", "--num_gpus", "4", "--stage", "3"]
    two = shlex.split(job(launch, "zero.py", "--num_gpus", "8", "--run_name", "a b").stdout)
    assert two[-5:] == ["zero.py", "--num_gpus", "8", "--run_name", "a b"]
    assert {"--nodes=2", "--nodelist=node1,node2", "--ntasks=2", "--cpus-per-task=16"} <= set(two)
    torchrun = " ".join(two[two.index("torchrun"):-5])
    assert torchrun == ("torchrun --nnodes 2 --nproc-per-node 4 --rdzv-id 12345 --rdzv-backend c10d "
                        "--rdzv-endpoint node1:22345")
    for devices in ("6", "12"):
        refused = job(launch, "zero.py", "--num_gpus", devices)
        assert refused.returncode == 2 and not refused.stdout
        assert refused.stderr == f"error: --num_gpus {devices}: this job has 2 nodes with 4 devices each\n"


def test_a_job_without_devices_or_outside_the_project_says_so(job, tmp_path):
    source = ["bash", ROOT / "experiments/slurm/cluster.sh"]
    nothing = job(*source, SLURM_GPUS_ON_NODE="", DEVICES_A_NODE="")
    assert nothing.returncode == 2 and nothing.stderr.startswith("error: this job has no GPUs; DEVICES_A_NODE=2")
    elsewhere = subprocess.run(source, cwd=tmp_path, capture_output=True, text=True)
    assert elsewhere.returncode == 2 and "is not the project's folder" in elsewhere.stderr


@pytest.mark.parametrize("trained", [True, False])
def test_when_time_is_up_a_job_queues_again_if_it_trained(trained, job, tmp_path):
    """SLURM sends the signal to the job's shell, here by its own child."""
    begin = f"source {ROOT}/experiments/slurm/cluster.sh"
    work = f"sleep 1.1; {f'touch {tmp_path}/steps.csv; ' * trained}kill -USR1 $PPID; sleep 0.5; exit 7"
    done = job("bash", "-c", f"{begin}; study bash -c {shlex.quote(work)}")
    assert done.returncode == 7, "the work goes on meanwhile: SLURM ends it"
    assert ("scontrol requeue 12345" in done.stdout) == trained
    assert ("give sbatch a longer --time" in done.stderr) != trained


def test_run_once_hands_a_run_to_the_launcher(tmp_path):
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\necho "$@"; echo "$RUN_STARTED_AT"\n')
    launcher.chmod(0o755)
    words = ["bert_baseline.py", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "experiments/run_once.py", *words], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"LAUNCHER": str(launcher)}, check=True)
    command, started = done.stdout.splitlines()
    assert command.split() == [*words, "--checkpoint_steps", "500", "--overwrite"]
    assert float(started) > 1.7e9
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "stopped", "command": command}))
    done = subprocess.run(done.args, cwd=ROOT, capture_output=True, text=True, check=True,
                          env=os.environ | {"LAUNCHER": str(launcher)})
    assert done.stdout.split()[:-1] == [*words, "--checkpoint_steps", "500", "--resume", "auto"]

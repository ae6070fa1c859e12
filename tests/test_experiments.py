"""Experiments are bash scripts that are run by hand; what they rely on is tested here."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.shared.runs import ROOT
from verification.records import read_verifications

RUN_ONCE = [sys.executable, "experiments/run_once.py"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.sh")), ids=lambda path: path.name)
def test_a_shell_script_can_be_read(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_a_finished_run_is_not_run_again_and_any_other_is(tmp_path):
    script = tmp_path / "count.py"
    script.write_text("import sys; open(sys.argv[2] + '/ran', 'a').write('x')")
    results = tmp_path / "results"
    (results / "one").mkdir(parents=True)
    record, ran = results / "one" / "run.json", results / "ran"

    def run(*flags: str) -> int:
        subprocess.run([*RUN_ONCE, script, "--output_dir", results, *flags], cwd=ROOT, check=True)
        return len(ran.read_text()) if ran.exists() else 0

    command = shlex.join([script.name, "--output_dir", str(results), "--seed", "0", "--overwrite"])
    record.write_text(json.dumps({"status": "finished", "command": command}))
    assert run("--seed", "0") == 0
    assert run("--seed", "1") == 1, "another command"
    record.write_text(json.dumps({"status": "failed", "command": command}))
    assert run("--seed", "0") == 2
    record.write_text('{"status": "fini')
    assert run("--seed", "0") == 3, "killed while it was written"


CHECKPOINTS = ["--checkpoint_steps", "500"]


@pytest.mark.parametrize(("flags", "added", "last"), [
    ([], CHECKPOINTS, "--resume auto"), (["--profile_steps", "3"], CHECKPOINTS, "--overwrite"),
    (["--profile-steps=3"], CHECKPOINTS, "--overwrite"), (["--checkpoint-steps=9"], [], "--resume auto")])
def test_an_interrupted_run_is_resumed_unless_it_is_profiled(tmp_path, flags, added, last):
    """A profile is of a run in one piece: the scripts refuse --resume with --profile_steps."""
    script = tmp_path / "script.py"
    script.write_text("import sys; print(*sys.argv[1:])")
    words = ["--output_dir", str(tmp_path), *flags]
    (tmp_path / "one").mkdir()
    command = shlex.join([script.name, *words, *added, "--overwrite"])
    (tmp_path / "one" / "run.json").write_text(json.dumps({"status": "stopped", "command": command}))
    done = subprocess.run([*RUN_ONCE, script, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == " ".join([*words, *added, last])


def test_a_failed_run_fails(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("raise SystemExit(2)")
    assert subprocess.run([*RUN_ONCE, script, "--output_dir", tmp_path], cwd=ROOT).returncode == 2


# A training script for a stand-in of the project: it only leaves a record, or is interrupted where $INTERRUPT says.
RECORDER = """
import json, os, shlex, subprocess, sys
from pathlib import Path
def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
words = sys.argv[1:]
name = f"{Path(sys.argv[0]).stem}-{words[words.index('--num_gpus') + 1]}"
status = "interrupted" if name == os.environ.get("INTERRUPT") else "finished"
folder = Path(words[words.index("--output_dir") + 1], name)
folder.mkdir(parents=True, exist_ok=True)
record = {"status": status, "run_name": name, "command": shlex.join([Path(sys.argv[0]).name, *words]),
          "git": {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}}
(folder / "run.json").write_text(json.dumps(record))
(folder / "summary.csv").write_text("runtime_s\\n60\\n")
for other in ("timeline.json", "predictions.json"):
    (folder / other).write_text("{}")
with open("results/log", "a") as log:
    print(name, *words[-2:], file=log)
sys.exit(status != "finished")
"""

VERIFIED = """
import sys
from pathlib import Path
from verification.records import KEY, add_verification
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
add_verification(folder, dict.fromkeys(KEY, "as here") | {"devices": sys.argv[2]}, {}, {})
"""


@pytest.fixture
def stand_in(tmp_path):
    """A checkout with the project's experiments, scripts that only leave records, and one record to be replaced."""
    root = tmp_path / "project"
    record = root / "results" / "reference" / "study_cpu_2_cores" / "ddp-1dev"
    record.mkdir(parents=True)
    (record / "run.json").write_text('{"run_name": "bert_baseline-1"}')
    (record / "summary.csv").write_text("runtime_s\n300\n")
    (record / "timeline.json").write_text("{}")
    for name in ("experiments", "benchmarks", "comparison", "measurement", "verification", "workload"):
        (root / name).symlink_to(ROOT / name)
    (root / "experiments").unlink()
    (root / "experiments").mkdir()
    for path in [*(ROOT / "experiments").glob("*.sh"), *(ROOT / "experiments").glob("*.py")]:
        (root / "experiments" / path.name).write_bytes(path.read_bytes())
    (root / "bert_baseline.py").write_text(RECORDER)
    (root / "pipeline.py").write_text(RECORDER)
    (root / "plots.py").write_text("")
    (root / "verify.py").write_text(VERIFIED)
    (root / ".gitignore").write_text("results/*\n!results/reference/\n__pycache__/\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


def make_reference(root, *parts, **variables):
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"} | variables
    return subprocess.run(["bash", "experiments/reference.sh", *parts], cwd=root, env=environment, capture_output=True,
                          text=True)


def test_reference_records_are_made_again_after_an_estimate_and_resumed(stand_in):
    log, records = stand_in / "results" / "log", stand_in / "results" / "reference" / "study_cpu_2_cores"
    assert make_reference(stand_in, "study", INTERRUPT="pipeline-2").returncode == 1
    assert [path.name for path in records.iterdir()] == ["ddp-1dev"], "nothing is replaced before all runs finished"
    assert len(log.read_text().splitlines()) == 5, "a failure does not stop the others"

    done = make_reference(stand_in, "study")
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("about 0 minutes ") and "(study 0)" in first, "5 of the record, less 5 runs of one"
    assert second.endswith("bert_baseline-1 is finished")
    assert log.read_text().splitlines()[5:] == ["pipeline-2 500 --overwrite"]

    assert {path.name for path in records.iterdir()} == {
        "ddp-1dev", "bert_baseline-2", "bert_baseline-4", "pipeline-2", "pipeline-4"}
    assert {path.name for path in (records / "ddp-1dev").iterdir()} == {"run.json", "summary.csv", "timeline.json"}
    assert {path.name for path in (records / "pipeline-4").iterdir()} == {"run.json", "summary.csv"}
    assert json.loads((records / "ddp-1dev" / "run.json").read_text())["git"]["dirty"] is False
    assert [entry["devices"] for entry in read_verifications(records.parent)] == ["1", "2", "4"]


def test_reference_records_are_made_from_a_clean_commit_only(stand_in):
    (stand_in / "plots.py").write_text("# changed")
    done = make_reference(stand_in)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "commit or stash" in done.stderr


def test_an_unknown_part_of_the_reference_records_is_refused(stand_in):
    done = make_reference(stand_in, "studys")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "no part studys; use some of study " in done.stderr


# ---------------------------------------------------------------------- the order of runs

@pytest.fixture
def study(stand_in):
    """Start the stand-in's study; returns its runs by name, in the order of their starts."""
    name = "(words[words.index('--run_name') + 1] if '--run_name' in words else {} + '-seed' + words[{}])".format(
        "f\"{Path(sys.argv[0]).stem}-{words[words.index('--num_gpus') + 1]}\"", "words.index('--seed') + 1")
    first, last = RECORDER.split("name = ")[0], RECORDER.split("\nstatus = ")[1]
    for script in ("bert_baseline.py", "pipeline.py"):
        (stand_in / script).write_text(f"{first}name = {name}\nstatus = {last}")
    log = stand_in / "results" / "log"

    def study(check=True, **variables):
        log.unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"} | variables
        done = subprocess.run(["bash", "experiments/study.sh"], cwd=stand_in, env=environment, capture_output=True,
                              text=True)
        assert not check or done.returncode == 0, done.stderr
        return [line.split()[0] for line in log.read_text().splitlines()]
    return study


def test_with_several_seeds_the_order_is_drawn_and_the_baseline_runs_twice(study, stand_in):
    names = study(SEEDS="0 1 2", RESUME="1")
    reruns = [f"rerun-bert_baseline-py-num_gpus-{devices}-seed-{{}}" for devices in (2, 4)]
    listed = [*(f"bert_baseline-{devices}-seed{{}}" for devices in (1, 2, 4)), *reruns, "pipeline-2-seed{}",
              "pipeline-4-seed{}"]
    orders = [names[7 * seed:7 * seed + 7] for seed in range(3)]
    for seed, order in enumerate(orders):
        assert sorted(order) == sorted(name.format(seed) for name in listed), "one seed after the other"
    places = [[order.index(name.format(seed)) for name in listed] for seed, order in enumerate(orders)]
    assert len(set(map(tuple, places))) == 3, "each has an order of its own"
    assert not all(order[0].startswith("bert_baseline") for order in orders)
    record = json.loads((stand_in / "results" / "study" / orders[1][0] / "run.json").read_text())
    assert "--seed 1" in record["command"]


def test_an_experiment_is_resumed_in_the_same_order(study, stand_in):
    names = study(SEEDS="3 7", RESUME="1")
    assert study(check=False, SEEDS="3 7", INTERRUPT=names[4]) == names, "begun again, and a failure stops nothing"
    assert study(SEEDS="3 7", RESUME="1") == [names[4]]
    for name in names[9:]:
        (stand_in / "results" / "study" / name / "run.json").unlink()
    assert study(SEEDS="3 7", RESUME="1") == names[9:]


def test_with_one_seed_the_order_is_as_listed(study):
    assert study(SEEDS="4") == [f"{run}-seed4" for run in (
        "bert_baseline-1", "bert_baseline-2", "bert_baseline-4", "pipeline-2", "pipeline-4")]


# ---------------------------------------------------------------------- on_gpu.sh

def on_gpu(root, *parts, **variables):
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "SAMPLE": "1"}
    return subprocess.run(["bash", "experiments/on_gpu.sh", *parts], cwd=root, env=environment | variables,
                          capture_output=True, text=True)


@pytest.fixture
def with_gpu(stand_in):
    """The stand-in on a machine with one GPU; its runs are named by script, batch and precision."""
    name = "'-'.join(words[words.index(flag) + 1] for flag in ('--global_batch_size', '--precision'))"
    recorder = RECORDER.replace("words[words.index('--num_gpus') + 1]", name)
    for script in ("bert_baseline.py", "fsdp.py"):
        (stand_in / script).write_text(recorder)
    (stand_in / "experiments" / "gpu_records.py").write_text("print('nvidia_x 1 bf16 64')")
    return stand_in


def test_a_failure_on_a_gpu_is_named_and_the_other_parts_run(with_gpu):
    log = with_gpu / "results" / "log"
    done = on_gpu(with_gpu, "compile", "batches", INTERRUPT="fsdp-16-bf16")
    assert done.returncode == 1 and "about 6 minutes" in done.stdout.splitlines()[0]
    [failed] = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: compile: fsdp.py --compile")
    assert [line.split()[0] for line in log.read_text().splitlines()] == [
        "bert_baseline-16-bf16", "fsdp-16-bf16", "bert_baseline-16-bf16", "bert_baseline-32-bf16"]
    assert "The CSVs are in results/on_gpu/nvidia_x_sample/" in done.stdout.splitlines()[-1]
    done = on_gpu(with_gpu, "batches")
    assert done.returncode == 0 and done.stdout.count("is finished") == 2


def test_a_part_on_a_gpu_has_a_time_limit(with_gpu):
    done = on_gpu(with_gpu, "batches", PART_LIMIT_S="10")
    assert done.returncode == 1 and done.stderr.count("the part's time is up") == 2
    assert not (with_gpu / "results" / "log").exists()


@pytest.mark.parametrize("parts, said", [(["verfy"], "no part verfy; use some of verify "), ([], "needs a GPU: ")])
def test_an_unknown_part_or_no_gpu_is_one_line(parts, said):
    done = on_gpu(ROOT, *parts, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and said in done.stderr


# ---------------------------------------------------------------------- the demo, and progress

@pytest.mark.parametrize("gpus", [0, 2])
def test_the_demo_says_what_it_does_and_what_to_look_at(study, stand_in, gpus):
    tools = stand_in / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\n" + "echo GPU\n" * gpus)
    (tools / "nvidia-smi").chmod(0o755)
    path = os.pathsep.join([str(tools), os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(["bash", "experiments/demo.sh"], cwd=stand_in, env=os.environ | {"PATH": path},
                          capture_output=True, text=True, check=True)
    runs = [line.split()[0] for line in (stand_in / "results" / "log").read_text().splitlines()]
    assert runs == ["bert_baseline-1-seed0", "bert_baseline-2-seed0", "pipeline-2-seed0", "pipeline-4-seed0"]
    assert "two minutes" in done.stdout and "results/demo/report.html" in done.stdout
    assert ("DEVICES=2 bash experiments/bert_squad.sh" in done.stdout) == (gpus > 0)


RUNS = """
source experiments/runs.sh
FLAGS=()
python() {
    [[ $1 == -c ]] && command python3 "$@" || echo "$EXPERIMENT_PROGRESS"
    SECONDS=$((SECONDS + 50))
}
for_each_seed ddp_and_pipelines 0
"""


@pytest.mark.parametrize("seeds, runs", [("0", 5), ("0 1", 14)])
def test_every_run_of_an_experiment_says_which_of_how_many_it_is(seeds, runs):
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", RUNS], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"SEEDS": seeds}, check=True)
    first, second, *_, last = lines = done.stdout.splitlines()
    assert len(lines) == runs and first == f"run 1 of {runs}"
    assert second == f"run 2 of {runs}, about {-(-50 * (runs - 1) // 60)} min left"
    assert last == f"run {runs} of {runs}, about 1 min left"

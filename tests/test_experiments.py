"""Experiments are scripts for bash; what they rest on is tested here, they themselves are run by hand."""

import json
import shlex
import subprocess
import sys

import pytest

from tests.shared.runs import ROOT

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
    assert run("--seed", "0") == 3, "broken off while it was written"


def test_a_failed_run_fails(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("raise SystemExit(2)")
    assert subprocess.run([*RUN_ONCE, script, "--output_dir", tmp_path], cwd=ROOT).returncode == 2

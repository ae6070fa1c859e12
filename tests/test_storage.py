"""Places that cannot be written to or named, temporary folders with long paths, and users without a name."""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import datasets.config
import pytest

from tests.shared.runs import EXACT, ROOT, stray_lines
from workload.errors import InputError
from workload.launch import start
from workload.storage import check_cache, check_writable, extensions_folder


@pytest.mark.parametrize("name", ["HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", None])
def test_a_cache_that_is_a_file_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    with pytest.raises(InputError) as caught:
        check_cache()
    assert f"{tmp_path / 'file'} is not a folder; set {name or 'HF_HOME'} to" in str(caught.value)
    assert (f"{name}={tmp_path / 'file'}: " if name else "cache of Hugging Face") in str(caught.value)


def test_a_cache_that_is_not_there_yet_is_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "new" / "datasets")
    check_cache()


@pytest.mark.parametrize("folder, flag", [
    (f"out/{'n' * 300}", "--run_name"), (f"{'n' * 300}/run", "--output_dir"), (f"out/{'é' * 130}", "--run_name"),
])
def test_a_name_that_is_too_long_is_refused(folder, flag, tmp_path):
    with pytest.raises(InputError, match=f"{flag}: the name .* bytes.*at most 255"):
        check_writable(tmp_path / folder)
    check_writable(tmp_path / "out" / ("n" * 255))
    assert list(tmp_path.iterdir()) == []


SEVERAL_PROCESSES = """
import tempfile
import multiprocess
from workload.storage import keep_sockets_short
keep_sockets_short()
with multiprocess.Manager() as manager:  # as datasets.map uses it
    queue = manager.Queue()
    queue.put(tempfile.gettempdir())
    print(queue.get(), multiprocess.util.get_temp_dir())
"""


@pytest.mark.parametrize("length", [20, 117])
def test_several_processes_tokenise_whatever_the_length_of_tmpdir(length, tmp_path):
    folder = tmp_path / ("t" * max(length - len(str(tmp_path)) - 1, 1))
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", SEVERAL_PROCESSES], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"TMPDIR": str(folder)}, timeout=60, check=True)
    usual, sockets = done.stdout.split()
    assert usual == str(folder), "what else is temporary stays where it was"
    assert sockets.startswith("/tmp/pymp-" if length > 75 else usual)
    assert not Path(sockets).exists() and list(folder.iterdir()) == []


def test_a_user_without_a_name_gets_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int):
        raise KeyError(f"getpwuid(): uid not found: {uid}")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with mock.patch.dict(os.environ, WORLD_SIZE=""):
        start.launch(0)
        assert getpass.getuser() == f"uid{os.getuid()}"


def test_who_may_not_write_to_the_environment_gets_a_copy_of_what_is_built_in_it(tmp_path, monkeypatch):
    built = tmp_path / "torch_extensions" / "operation"
    built.mkdir(parents=True)
    for name in ("operation.so", "lock"):
        (built / name).write_text(name)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert extensions_folder() == str(built.parent)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    copy = Path(extensions_folder())
    assert copy != built.parent and [path.name for path in copy.rglob("*.*")] == ["operation.so"], "nobody holds a lock"
    shutil.rmtree(copy)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_a_user_id_that_no_user_has_can_train(environment):
    """As in a container that is started with --user."""
    # The capability opens folders that may be closed to others, such as the one that Python is installed in.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        done = subprocess.run(
            ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--inh-caps", "+dac_read_search",
             "--ambient-caps", "+dac_read_search", "env", "-i", f"PATH={environment['PATH']}", "HOME=/",
             f"HF_HOME={folder}/cache", sys.executable, "zero.py", *EXACT, "--num_gpus", "1", "--max_steps", "2",
             "--output_dir", f"{folder}/out", "--run_name", "run"],
            cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0 and not stray_lines(done), done.stderr
        assert os.stat(f"{folder}/out/run/summary.csv").st_uid == 12345

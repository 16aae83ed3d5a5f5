"""What is recorded of the machine: complete, true where it can be checked, and free of personal names."""

import getpass
import importlib
import json
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from rowsft.measure import collect, environment


def test_versions_are_those_of_the_imported_packages():
    packages = collect({})["packages"]
    assert packages["python"] == platform.python_version()
    for name in ("torch", "transformers", "peft", "numpy"):
        # A CUDA build of torch gives its build, +cu130, itself and not as installed; the record has it under "cuda".
        assert packages[name].partition("+")[0] == importlib.import_module(name).__version__.partition("+")[0]
    assert {"accelerate", "datasets", "evaluate", "hydra-core", "wandb"} <= packages.keys()


def test_record_is_json_and_carries_seeds_threads_and_hardware(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    found = collect({"data": 1, "model": 2})
    assert json.loads(json.dumps(found)) == found
    assert found["seeds"] == {"data": 1, "model": 2}
    assert found["threads"]["torch_threads"] == torch.get_num_threads()
    assert (found["threads"]["MKL_NUM_THREADS"], found["threads"]["OPENBLAS_NUM_THREADS"]) == ("3", None)
    hardware = found["hardware"]
    assert hardware["ram_bytes"] == psutil.virtual_memory().total
    assert hardware["usable_cores"] == len(os.sched_getaffinity(0)) <= hardware["logical_cores"]
    assert len(hardware["gpus"]) == torch.cuda.device_count()


def test_record_names_no_host_user_or_folder():
    text = json.dumps(collect({}))
    assert str(Path.home()) + "/" not in text and str(environment.PACKAGE_FOLDER) not in text
    assert json.dumps(socket.gethostname()) not in text
    assert json.dumps(getpass.getuser()) not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state_of_clean_changed_untracked_and_foreign_folders(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment.git_state(tmp_path) == (None, None)
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("1")
    git("init")
    assert environment.git_state(package) == (None, None)
    git("add", ".")
    git("commit", "-m", "first")
    assert environment.git_state(package) == (git("rev-parse", "HEAD"), False)
    (package / "code.py").write_text("2")
    assert environment.git_state(package) == (git("rev-parse", "HEAD"), True)
    installed = tmp_path / "venv"
    installed.mkdir()
    (installed / "code.py").write_text("1")
    assert environment.git_state(installed) == (None, None)


def test_no_git_program_is_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = collect({})
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/a/b", {"memory.max": "max", "a/memory.max": "5000", "a/b/memory.max": "max"}, 5000),
        ("0::/a", {"a/memory.max": "max"}, None),
        ("0::/not/here", {"memory.max": "7000"}, 7000),
        ("4:cpu,memory:/c\n0::/", {"memory/c/memory.limit_in_bytes": "3000"}, 3000),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("1:cpu:/", {}, None),
    ],
)
def test_cgroup_limit_is_the_smallest_on_the_way_up(tmp_path, monkeypatch, membership, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    monkeypatch.setattr(environment, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(environment, "CGROUP_MEMBERSHIP", tmp_path / "membership")
    assert environment._cgroup_limit_bytes() == limit

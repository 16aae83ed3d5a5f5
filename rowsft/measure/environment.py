"""What a result depends on beside its config: packages, commit, hardware, threads. No host, user or path names."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "hydra-core",
    "wandb",
    "numpy",
)
# Named where they are installed, as few need.
QUANTISING = ("bitsandbytes", "torchao")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")
PACKAGE_FOLDER = Path(__file__).parent
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")


def collect(seeds: dict[str, int]) -> dict[str, Any]:
    """The record's `environment`, JSON-able; what cannot be found is None. `seeds` is passed through."""
    commit, dirty = git_state(PACKAGE_FOLDER)
    return {
        "packages": _packages(),
        "git_commit": commit,
        "git_dirty": dirty,
        "hardware": _hardware(),
        "threads": _threads(),
        "os": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "seeds": dict(seeds),
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository that `folder` belongs to and whether its working tree differs from it.

    (None, None) without git, outside a repository, or where git does not track the folder: an installed copy below
    some other project must not be given that project's commit.
    """
    tracked = _output("git", "-C", str(folder), "ls-files", ".")
    commit = _output("git", "-C", str(folder), "rev-parse", "--verify", "HEAD")
    changes = _output("git", "-C", str(folder), "status", "--porcelain")
    if not tracked or not commit or changes is None:
        return None, None
    return commit, bool(changes)


def _output(*command: str) -> str | None:
    try:
        # git status would otherwise take the index lock to refresh it, against whoever else uses the repository.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    for name in QUANTISING:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _hardware() -> dict[str, Any]:
    return {
        "cpu_model": _cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "ram_bytes": psutil.virtual_memory().total,
        "cgroup_limit_bytes": _cgroup_limit_bytes(),
        **_gpus(),
    }


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _cgroup_limit_bytes() -> int | None:
    """Smallest memory limit of this process's control groups, version 1 or 2; None if there is none."""
    try:
        entries = [line.split(":", 2) for line in CGROUP_MEMBERSHIP.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, group in entries:
        if controllers == "":
            mount, name = CGROUP_ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = CGROUP_ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container may see its own group as the mount's root while the listed path is the host's: read both.
        group_folder = mount / group.lstrip("/")
        folders = {mount, group_folder, *(parent for parent in group_folder.parents if mount in parent.parents)}
        limits += [_read_limit(folder / name) for folder in folders]
    # Version 1 writes "no limit" as a number close to 2**63.
    real = [limit for limit in limits if limit is not None and limit < 1 << 60]
    return min(real, default=None)


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _gpus() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpus": [], "gpu_driver": None, "cuda": None, "cudnn": None}
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpus": [
            {"name": gpu.name, "memory_bytes": gpu.total_memory, "compute_capability": f"{gpu.major}.{gpu.minor}"}
            for gpu in properties
        ],
        "gpu_driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _threads() -> dict[str, Any]:
    return {
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        **{name: os.environ.get(name) for name in THREAD_VARIABLES},
    }

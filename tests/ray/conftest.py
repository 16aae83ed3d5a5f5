"""One Ray cluster on loopback and one workshop of tiny models for all tests; skipped where Ray is not installed."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_workshop import Workshop, build_workshop

# As conf/hydra/launcher/ray.yaml has them.
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def pytest_collection_modifyitems(items):
    reason = None
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        reason = "needs pip install '.[ray]': make ray-test"
    elif not os.environ.get("ROWSFT_RAY_TESTS"):
        reason = "starts a Ray of its own: make ray-test"
    if reason is not None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))


@contextmanager
def running(cpus):
    """A cluster of this machine that runs before a sweep does; gives its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-gpus=0"]
    command += [f"--num-cpus={cpus}", "--include-dashboard=false", "--object-store-memory=80000000"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), *command[1:]],
        env={**os.environ, **QUIET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < end, "Ray did not start"
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def ray_address():
    with running(2) as (address, _):
        yield address


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

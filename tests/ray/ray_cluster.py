"""A Ray cluster of this machine, on loopback, that runs before a sweep does."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# As conf/hydra/launcher/ray.yaml has them.
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@contextmanager
def running(cpus):
    """Start a cluster and stop it afterwards; gives its address and its process."""
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


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

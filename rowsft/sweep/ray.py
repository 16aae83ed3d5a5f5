"""Ray, through hydra-ray-launcher: jobs as tasks of a cluster that runs, or of one that is started on this machine."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher
from omegaconf import OmegaConf

from rowsft.config.hydra_internals import ray_core
from rowsft.errors import UserError, shortened
from rowsft.sweep.engine import Engine, Fetch


class Ray(Engine):
    """hydra/launcher=ray; settings: those of conf/hydra/launcher/ray.yaml."""

    name = "ray"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._init, self._remote = dict(settings["ray"]["init"]), dict(settings["ray"]["remote"])
        for variable, value in settings["env"].items():
            os.environ.setdefault(variable, str(value))
        self._cpus = self._gpus = 0.0

    def launcher(self) -> RayLauncher:
        """Return the launcher, connected: jobs get a GPU each where the cluster has any, unless it is said."""
        self._connect()
        gpus, cpus = self._remote["num_gpus"], self._remote["num_cpus"]
        remote = {**self._remote, "num_gpus": min(1, self._gpus) if gpus is None else gpus}
        if self._init["address"] == "local":
            for what, asked, there in (("num_gpus", remote["num_gpus"], self._gpus), ("num_cpus", cpus, self._cpus)):
                if asked > there:
                    raise UserError(f"hydra.launcher.ray.remote.{what}={asked}: this machine's cluster has {there:g}")
        return RayLauncher(OmegaConf.create({"init": self._init, "remote": remote}))

    def beside(self, jobs: int) -> int:
        """Return how many the cluster's CPUs hold."""
        self._connect()
        return max(1, min(jobs, int(self._cpus // (self._remote["num_cpus"] or 1))))

    def logs(self) -> str:
        """Return where Ray keeps them unless it is told otherwise."""
        return "worker-* in /tmp/ray/session_latest/logs of each node"

    def lost(self, error: Exception) -> str:
        """Return the last line of what Ray says."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"

    @contextmanager
    def fetching(self, fetched: Callable[[Fetch], JobReturn]) -> Iterator[None]:
        """See `Engine.fetching`."""
        core = ray_core()
        ray = core.ray
        # All that the launcher does with it.
        vars(core)["ray"] = SimpleNamespace(get=lambda task: fetched(lambda: ray.get(task)))
        try:
            yield
        finally:
            vars(core)["ray"] = ray

    def _connect(self) -> None:
        import ray

        if not ray.is_initialized():
            _check_reachable(self._init["address"])
            try:
                ray.init(**self._init)
            except ConnectionError as error:
                shown = shortened(error, 200)
                raise UserError(f"hydra.launcher.ray.init.address={self._init['address']}: {shown}") from error
        resources = ray.cluster_resources()
        self._cpus, self._gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _check_reachable(address: str | None) -> None:
    """Raise UserError where nothing listens at host:port; Ray itself would try for half an hour."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "//" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"hydra.launcher.ray.init.address={address}: no Ray cluster answers there ({error})") from error

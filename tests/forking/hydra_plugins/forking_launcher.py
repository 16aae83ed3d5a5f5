"""A launcher for tests: every job in a fork of one process that has imported torch already, one after the other.

Chosen by `hydra/launcher=forking` with tests/forking on the PYTHONPATH. It knows nothing of rowsft but `rowsft run`.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher


@dataclass
class ForkingConfig:
    """No settings."""

    _target_: str = "hydra_plugins.forking_launcher.ForkingLauncher"


class ForkingLauncher(Launcher):
    """Runs `rowsft run` in forks."""

    def setup(self, *, hydra_context, task_function, config) -> None:
        import torch

        import rowsft.runner.run  # noqa: F401 (imported once, for all forks)

        torch.set_num_threads(1)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returns = []
        for overrides in job_overrides:
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = _forked(list(overrides))
            returns.append(job)
        return returns


def _forked(overrides: list[str]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        from rowsft.cli.main import main

        try:
            main(["run", *overrides])
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


ConfigStore.instance().store(group="hydra/launcher", name="forking", node=ForkingConfig, provider="tests")

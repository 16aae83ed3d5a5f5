"""Slurm, through hydra-submitit-launcher: arrays of jobs, requeued before their time is up and when preempted."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from submitit.core import utils
from submitit.core.logger import get_logger
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from rowsft.errors import UserError
from rowsft.sweep import launcher
from rowsft.sweep.engine import Engine, Fetch

#: Seconds between two looks at what became of the jobs; of jobs that are over, Slurm forgets most after five minutes.
_LOOK_SECONDS = 20
#: In the place of Slurm's state of a job that it has forgotten.
_GONE = "NO LONGER KNOWN"
#: Seconds that are left to requeue a job once it has stopped.
_TO_REQUEUE_SECONDS = 10
# Settings that neither submitit nor sbatch says in words what is wrong with.
_KINDS: dict[str, tuple[Any, str]] = {
    "array_parallelism": (int, "1 or more"),
    "additional_parameters": (dict | None, "null or options of sbatch, such as {exclusive: true}"),
    "setup": (list | None, "null or a list of shell commands, such as ['module load cuda']"),
}


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """The plugin's launcher; on a worker it stops the job before it is requeued, and says nothing of a stopped one."""

    _told_to_end = False

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """Run one job, on a worker."""
        # What is run after a requeue was kept as it was when it was told to end.
        self._told_to_end = False
        signal.signal(signal.SIGTERM, self._end)
        returned = super().__call__(*args, **kwargs)
        while self._told_to_end:
            # A result now would say that the job is over, though Slurm may requeue it. It ends what it told to end.
            time.sleep(1)
        return returned

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Stop the job, which keeps a checkpoint, and return what is to be run when it is requeued.

        submitit calls it inside the handler of the signal that comes before the time limit or a preemption.
        """
        self.stop_job()
        return super().checkpoint(*args, **kwargs)

    def stop_job(self) -> None:
        """Stop the process of the job and wait for its end, within the time that the signal comes early."""
        launcher.stop(within=max(5, self.params["signal_delay_s"] - _TO_REQUEUE_SECONDS))

    def _end(self, number: int, frame: object) -> None:
        self._told_to_end = True
        launcher.stop()


class Slurm(Engine):
    """hydra/launcher=slurm; settings: those of conf/hydra/launcher/slurm.yaml."""

    name = "slurm"

    def __init__(self, settings: dict[str, Any]) -> None:
        for key, (kind, expected) in _KINDS.items():
            value = settings[key]
            if not isinstance(value, kind) or (kind is int and value < 1):
                raise UserError(f"hydra.launcher.{key}={value}: expected {expected}")
        self._settings = {**settings, "additional_parameters": settings["additional_parameters"] or {}}

    def launcher(self) -> SlurmLauncher:
        """Return the launcher; its folder is the user's alone, for the jobs' overrides lie in it."""
        folder = self._folder()
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o700)
        # What it does is said in a line a job.
        get_logger().setLevel("ERROR")
        return SlurmLauncher(**self._settings)

    def beside(self, jobs: int) -> int:
        """Return how many run at once at most: on which nodes is not known."""
        return min(jobs, self._settings["array_parallelism"])

    def logs(self) -> str:
        """Return the folder with one for each job."""
        return str(self._folder())

    def lost(self, error: Exception) -> str:
        """Return the last line of what submitit, sbatch or the job itself says, after Slurm's state of the job."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        state = next((line[line.index("(state:") :] for line in lines if "(state:" in line), "")
        if _GONE in state:
            return "Slurm does not know it any more: it was cancelled before it began, or it is over since long"
        # Slurm's own word on the end of a job stands before that it ended, and before srun's, which counts the dead.
        own = [line for line in lines if line.startswith("slurmstepd")]
        causes = [line for line in own if "***" not in line]
        said = (causes or own or lines or [type(error).__name__])[-1]
        if isinstance(error, utils.FailedJobError) and said.startswith(("sbatch:", "srun:")):
            said = f"{said}; look at hydra.launcher.partition, account, gpus_per_node and the settings beside them"
        return f"Slurm {state.strip('()').removeprefix('state: ')}: {said}" if state else said

    @contextmanager
    def fetching(self, fetched: Callable[[Fetch], JobReturn]) -> Iterator[None]:
        """See `Engine.fetching`."""
        results, watcher = SlurmJob.results, SlurmJob.watcher

        def each(job: SlurmJob) -> list[JobReturn]:
            return [fetched(lambda: results(job)[0])]

        SlurmJob.results, SlurmJob.watcher = each, Watcher(_LOOK_SECONDS)
        try:
            yield
        finally:
            SlurmJob.results, SlurmJob.watcher = results, watcher

    def _folder(self) -> Path:
        return utils.JobPaths.get_first_id_independent_folder(self._settings["submitit_folder"])


class Watcher(SlurmInfoWatcher):
    """What became of jobs, asked of sacct where Slurm keeps accounts, otherwise of the controller itself."""

    _accounts: bool | None = None

    def update(self) -> None:
        """Look at all jobs that are not known to be over."""
        if self._accounts is None:
            asked = subprocess.run(
                ["sacct", "--noheader", "--allocations", "--jobs=0"], capture_output=True, check=False
            )
            self._accounts = asked.returncode == 0
        if self._accounts:
            super().update()
            return
        ids = sorted({job.partition("_")[0] for job in self._registered - self._finished})
        command = ["squeue", "--array", "--states=all", "--format=%i|%T|%N", f"--jobs={','.join(ids)}"]
        said = subprocess.run(command, capture_output=True, text=True, check=False) if ids else None
        self._last_status_check = time.time()
        if said is None or (said.returncode and "Invalid job id" not in said.stderr):
            # The controller does not answer: nothing is known.
            return
        found = self.read_info(said.stdout.replace("JOBID|STATE|NODELIST", "JobID|State|NodeList", 1))
        # Forgotten: over for so long.
        gone = {job: {"State": _GONE} for job in self._registered - self._finished - found.keys()}
        self._info_dict |= gone | found
        self._finished |= {job for job in self._registered if self.is_done(job, mode="cache")}

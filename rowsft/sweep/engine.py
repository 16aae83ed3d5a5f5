"""Jobs handed to an engine's launcher (Slurm's, Ray's): what it carries to its workers, and what comes back.

An engine gets the overrides of the jobs that are to be run, packed, and nothing else of the configuration; each job
composes its own. What an engine cannot bring back (a worker that was lost) becomes a line and a record, as any failure
does, and the other jobs go on.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from rowsft import config_folders
from rowsft.config.hydra_internals import carried_context, without_configuration
from rowsft.errors import UserError, one_line
from rowsft.output import redact
from rowsft.store import Store
from rowsft.sweep import due, under_way
from rowsft.sweep.jobs import SweepJob
from rowsft.sweep.worker import Ended, Work, packed

#: Fetches what one job came to; raises where the engine has lost it.
Fetch = Callable[[], JobReturn]
#: Seconds in which a result that a worker has written must be seen here: shared file systems keep old answers so long.
_SEEN_SECONDS = 60.0


class Engine(ABC):
    """An engine's launcher, as Hydra's plugin for it has it, and what is to be known about the engine."""

    #: What the user calls it.
    name: str

    @abstractmethod
    def launcher(self) -> Launcher:
        """Return the plugin's launcher, before its `setup`. Raises UserError where the engine cannot be reached."""

    @abstractmethod
    def beside(self, jobs: int) -> int:
        """Return how many of `jobs` may run at once."""

    @abstractmethod
    def fetching(self, fetched: Callable[[Fetch], JobReturn]) -> AbstractContextManager[None]:
        """Have the launcher fetch every job's result, in the order of the jobs, by `fetched`, inside the block."""

    @abstractmethod
    def lost(self, error: Exception) -> str:
        """Return in a line why a job did not come back."""

    @abstractmethod
    def logs(self) -> str:
        """Return where the jobs' logs lie, for a reader."""

    def run(self, jobs: list[list[str]], first: int, folder: Path) -> list[int]:
        """Run jobs (lists of overrides) as `rowsft.sweep.launcher.run_jobs` does; returns their exit codes."""
        return due.run_due(jobs, lambda started: self._handed(started, len(jobs), first, folder))

    def _handed(self, jobs: list[SweepJob], of: int, first: int, folder: Path) -> dict[int, int]:
        own = config_folders.own()
        attempts = {job.number: _attempts(job) for job in jobs}
        codes: dict[int, int] = {}

        def fetched(fetch: Fetch) -> JobReturn:
            job, returned = jobs[len(codes)], JobReturn()
            try:
                returned = fetch()
                ended: Ended = returned.return_value
            except Exception as error:
                why = redact.text(one_line(self.lost(error), 600))
                ended = Ended(1, _recorded(job, why, attempts[job.number]), "")
            codes[job.number] = _told(job, of, ended)
            return returned

        plural = "s" * (len(jobs) != 1)
        try:
            engine = self.launcher()
            work = Work(str(Path.cwd()), str(own) if own else None, under_way.sweep.rerun, self.beside(len(jobs)))
            context, config = carried_context(folder)
            engine.setup(hydra_context=context, task_function=work, config=config)
            under_way.say(f"{self.name}: {len(jobs)} job{plural} handed over; logs: {self.logs()}", "bold")
            with without_configuration(), self.fetching(fetched):
                engine.launch([[packed(job.overrides)] for job in jobs], initial_job_idx=first)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"hydra/launcher={self.name}: {self.lost(error)}") from error
        return codes


def _told(job: SweepJob, of: int, ended: Ended) -> int:
    """Say how a job ended; returns its exit code."""
    place = f" ({ended.host})" if ended.host else ""
    why = ended.why or "it does not say why"
    if ended.code == 0 and not _is_seen(job):
        why = (
            f"done{place}, but {job.spec.folder} is not seen here: the store must lie where this machine and the "
            "workers have the same files; store=FOLDER"
        )
    elif ended.code == 0:
        under_way.say(f"{under_way.title(job, of)}: done{place}", "green")
        return 0
    under_way.fail(job, of, why)
    return ended.code or 1


def _is_seen(job: SweepJob) -> bool:
    end = time.monotonic() + _SEEN_SECONDS
    while not job.spec.is_done:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def _attempts(job: SweepJob) -> int:
    with suppress(UserError):
        return len(Store(job.spec.store).get(job.spec.run_id).attempts)
    return 0


def _recorded(job: SweepJob, why: str, before: int) -> str:
    """Write into the record of a job why it was lost, unless it did so itself; returns why the run is not done."""
    if job.spec.measures:
        return why
    try:
        end = Store(job.spec.store).record_loss(job.spec.config, why, before)
    except UserError as error:
        return f"{why}; it is not recorded: {error}"
    if end is None or end.error is None or end.error.message == why:
        return why
    return f"{end.state}: {end.error.type}: {end.error.message}; {why}"

"""Which jobs of a sweep have to be run: not those that are done, are another's run, or are not to be tried again."""

from collections.abc import Callable

from rowsft.config.retrying import Retry, retry_policy
from rowsft.errors import UserError
from rowsft.output import redact
from rowsft.store import Store
from rowsft.store.identity import experiment_notes
from rowsft.store.lock import is_held
from rowsft.sweep import under_way
from rowsft.sweep.jobs import SweepJob


def check(jobs: list[list[str]]) -> list[SweepJob]:
    """Resolve the jobs. Raises UserError for the first that is wrong; nothing is written and nothing started."""
    if under_way.sweep.checked[0] != jobs:
        under_way.say(f"{len(jobs):,} job{'s' * (len(jobs) != 1)}: looking up which are done", "dim")
        under_way.sweep.checked = (jobs, under_way.sweep.resolver.resolve(jobs, under_way.sweep.rerun))
    return under_way.sweep.checked[1]


def run_due(jobs: list[list[str]], start: Callable[[list[SweepJob]], dict[int, int]]) -> list[int]:
    """Hand the jobs that have to be run to `start`, which gives exit codes by number; returns those of all jobs.

    Left out are jobs that are done, jobs that `retry` leaves as they are, and all but one of those that are the same
    run.
    """
    planned = check(jobs)
    started = [job for job in planned if job.same_as is None and not _skipped(job, len(jobs))]
    not_tried = {job.number: why for job in started if not under_way.sweep.rerun and (why := left(job)) is not None}
    for job in started:
        if job.number in not_tried:
            under_way.fail(job, len(jobs), not_tried[job.number])
    codes = dict.fromkeys(not_tried, 1)
    if started := [job for job in started if job.number not in not_tried]:
        codes |= start(started)
    for job in planned:
        if job.same_as is not None:
            codes[job.number] = _as_the_other(job, len(jobs), codes.get(job.same_as, 0))
    return [codes.get(job.number, 0) for job in planned]


def _skipped(job: SweepJob, of: int) -> bool:
    """Whether the job is done and not to be repeated: then it is entered in its experiment, and that is all."""
    if not job.done or under_way.sweep.rerun:
        return False
    _enter(job)
    under_way.say(f"{under_way.title(job, of)}: done already ({job.spec.folder})", "dim")
    return True


def _as_the_other(job: SweepJob, of: int, code: int) -> int:
    if job.done and not under_way.sweep.rerun:
        _skipped(job, of)
    elif code == 0:
        _enter(job)
        under_way.say(f"{under_way.title(job, of)}: the same run as [{job.same_as}/{of}] ({job.spec.folder})", "dim")
    else:
        under_way.fail(job, of, f"the same run as [{job.same_as}/{of}]")
    return code


def _enter(job: SweepJob) -> None:
    """Enter the run in the job's experiment, which costs nothing where it was in it when the job was planned."""
    name, notes = job.spec.experiment, redact.config(experiment_notes(job.spec.config))
    known = under_way.sweep.resolver.experiments(job) or {}
    noted = known.get("experiment_notes")
    if name not in (known.get("experiments") or []) or (notes and (noted or {}).get(name) != notes):
        Store(job.spec.store).add_experiment(job.spec.run_id, name, notes)


def left(job: SweepJob) -> str | None:
    """Why the job is not tried again, though it is not done; None where it is."""
    retry = retry_policy(job.spec.config)
    if retry == Retry():
        return None
    try:
        if is_held(job.spec.folder):
            return None
        state = Store(job.spec.store).get(job.spec.run_id).state
    except UserError:
        return None
    return retry.left(state) if retry.action(state) == "leave" else None

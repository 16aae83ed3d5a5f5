"""Uploading what offline runs wrote, by `wandb sync`, in bounded time.

W&B has no Python call for it, and its command ends with status 0 whatever became of the runs: a run is uploaded once
the command has left its mark beside it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.tracking.account import has_account
from rowsft.tracking.offline import OfflineRun, offline_runs, wandb_folder

_POLL_SECONDS = 0.2
# W&B marks lines of errors so; which run they are of it tells in most.
_ERROR = re.compile(r"^wandb: ERROR\s+(.*)$", re.M)


@dataclass
class Synced:
    """Ids of runs that this call uploaded, those that were there before, and those that failed, with the reason."""

    uploaded: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def sync(folder: str | Path | None, wait_seconds: float, say: Callable[[str], None] = lambda _: None) -> Synced:
    """Upload the offline runs below `folder`; `say` is told of each that is up.

    wait_seconds: how long nothing may come of it until it counts as hanging. Raises UserError where there is nothing to
    upload to or from.
    """
    where = wandb_folder(folder)
    runs = offline_runs(where)
    if not runs:
        raise UserError(
            f"{where}: no offline runs; make some with tracker=wandb tracker.mode=offline, or from records with "
            "`rowsft track replay`, and name their folder with --dir"
        )
    done = Synced(before=[run.id for run in runs if run.uploaded])
    times = Counter(run.id for run in runs)
    for name in (name for name, number in times.items() if number > 1):
        done.failed[name] = (
            f"{times[name]} folders of this run would overwrite each other; "
            f"`rowsft track replay {name.rpartition('-')[0]}` writes one from the record"
        )
    waiting = [run for run in runs if not run.uploaded and run.id not in done.failed]
    if waiting:
        if not has_account():
            raise UserError(
                "W&B: no API key; `wandb login` (or WANDB_API_KEY=...) and this command again: the offline runs stay"
            )
        _upload(waiting, done, wait_seconds, say)
    return done


def _upload(waiting: list[OfflineRun], done: Synced, wait_seconds: float, say: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(run.path) for run in waiting)]
    # A session of its own, so that it ends together with the processes that it starts.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    lines: list[str] = []
    reader = Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    left, heard, seen = {run.id: run for run in waiting}, time.monotonic(), 0
    try:
        while True:
            ended = process.poll() is not None
            for name in [name for name, run in left.items() if run.uploaded]:
                del left[name]
                done.uploaded.append(name)
                say(name)
                heard = time.monotonic()
            if len(lines) != seen:
                seen, heard = len(lines), time.monotonic()
            if ended or not left or time.monotonic() - heard > wait_seconds:
                break
            time.sleep(_POLL_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reader.join(_POLL_SECONDS)
    errors = _ERROR.findall("".join(lines))
    silent = f"no answer within {wait_seconds:g} seconds; try again later"
    for name in left:
        of_it = [line for line in errors if name in line] or errors
        done.failed[name] = shortened(redact.text(of_it[-1]), 300) if ended and of_it else silent

"""runs/: a store of runs addressed by what determines their result (layout: docs/architecture.md and runs/README.md).

    with Store("runs").open(config) as run:        # the run's lock is held until the block ends
        if run.record.result is None:
            attempt = run.begin(environment={...})
            attempt.update(seconds={"load": 1.2})
            attempt.write_predictions(rows)
            attempt.finish("done", metrics={...})

Never imports torch.

May import record, output and config_folders. Every other room reads and writes runs through this one.
"""

import logging
import os
import re
from pathlib import Path

from rowsft.errors import UserError
from rowsft.output import escape, redact
from rowsft.progress import each
from rowsft.record import SCHEMA_VERSION, Attempt, Error, State
from rowsft.store import files, removal
from rowsft.store.attempt import OpenAttempt
from rowsft.store.files import explained, write_csv, write_jsonl
from rowsft.store.folder import RunFolder
from rowsft.store.identity import RESULTS_VERSION, experiment_name, identity, run_id
from rowsft.store.places import Places
from rowsft.store.record import STATES, Record, UnreadableRecord, read_record

__all__ = [
    "RESULTS_VERSION",
    "SCHEMA_VERSION",
    "STATES",
    "OpenAttempt",
    "Record",
    "RunFolder",
    "Store",
    "experiment_name",
    "identity",
    "run_id",
    "write_csv",
    "write_jsonl",
]

log = logging.getLogger(__name__)

_MEND = "run it again with the same config: the damaged file is then set aside and the run starts anew"


class Store:
    """A folder of run folders. Reading writes nothing; only `open` creates and locks."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._warned: set[str] = set()
        #: Ids of the runs that `runs` has skipped, the last time.
        self.skipped: list[str] = []

    def open(self, config: dict) -> RunFolder:
        """The run of this resolved config, locked, created (state pending) if it is new, entered in its experiment.

        It is recorded, and its id made, without the secrets that `redact.config` finds.

        Raises UserError when another process works on it, when the folder cannot be written or is full, and when
        its record was written by a newer version.
        """
        for folder in ("scores", "tokenised"):
            files.remove_leftovers(self.root / folder)
        removal.clear(self.root)
        recorded = redact.config(config)
        return RunFolder(Places(self.root).place(recorded), recorded)

    def runs(self, experiment: str | None = None) -> list[Record]:
        """Every readable run (of one experiment), by id. An unreadable record is skipped with a one-line warning."""
        records, self.skipped = [], []
        for folder in each("reading runs", self._folders()):
            try:
                records.append(read_record(folder))
            except (UnreadableRecord, UserError) as reason:
                mend = f"; {_MEND}" if isinstance(reason, UnreadableRecord) else ""
                self._warn(f"{reason}: skipped{mend}")
                self.skipped.append(folder.name)
        return [record for record in records if experiment is None or experiment in record.experiments]

    def experiments(self) -> list[str]:
        """The names of the experiments that the store has runs of, sorted."""
        return sorted({name for record in self.runs() for name in record.experiments})

    def get(self, prefix: str) -> Record:
        """The one run whose id starts with `prefix`. Raises UserError when there is none, several or it is damaged."""
        candidates = [folder for folder in self._folders() if folder.name.startswith(prefix)]
        exact = [folder for folder in candidates if folder.name == prefix]
        if len(exact or candidates) != 1 or not prefix:
            seen = f"matches {', '.join(folder.name for folder in candidates)}" if candidates else "is not in it"
            raise UserError(f"run {prefix!r}: {seen} (store {self.root}); give one id that `rowsft runs` lists")
        try:
            return read_record((exact or candidates)[0])
        except UnreadableRecord as reason:
            raise UserError(f"{reason}; {_MEND}") from reason

    def is_done(self, run_id: str) -> bool:
        """Whether the run has an attempt that is done. False too when its record is absent or damaged."""
        try:
            return (self.root / run_id / "record.json").exists() and read_record(self.root / run_id).result is not None
        except UnreadableRecord:
            return False

    def attempt_of(self, run_id: str, pid: int) -> Attempt | None:
        """The run's latest attempt if the process `pid` made it, else None."""
        try:
            latest = read_record(self.root / run_id).latest
        except (UnreadableRecord, UserError):
            return None
        return latest if latest and latest.pid == pid else None

    def add_experiment(self, run_id: str, name: str, notes: dict | None = None) -> None:
        """Enter an existing run in one more experiment; see `RunFolder.add_experiment`."""
        record = read_record(self.root / run_id)
        if name not in record.experiments or (notes and record.experiment_notes.get(name) != notes):
            with self._reopen(run_id) as run:
                run.add_experiment(name, notes)

    def record_death(self, config: dict, pid: int, message: str) -> None:
        """Write down why the process `pid` that worked on the run of `config` went away, if it did not do so itself.

        An attempt that it left open is closed as interrupted; where it began none, one is entered.
        """
        with self.open(config) as run:
            latest = run.record.latest
            if latest is not None and latest.pid == pid:
                run.close_dead(message)
            else:
                run.begin(pid=pid).finish("interrupted", error=Error(type="Killed", message=message))

    def record_loss(self, config: dict, message: str, before: int) -> Attempt | None:
        """Write down why whoever ran the run of `config` was lost, unless the run did so itself; returns its end.

        before: how many attempts there were when it was handed over. An attempt that it left open is closed as
        interrupted; where it began none, one is entered.
        """
        with self.open(config) as run:
            latest = run.record.latest
            if len(run.record.attempts) <= before:
                run.begin().finish("interrupted", error=Error(type="Lost", message=message))
            elif latest is not None and latest.state == "running":
                run.close_dead(message)
            return run.record.latest

    def close_dead(self, run_id: str, message: str) -> None:
        """Write down why a run's process went away; does nothing when the run is not one that says running."""
        if (self.root / run_id / "record.json").exists():
            with self._reopen(run_id) as run:
                run.close_dead(message)

    def close_attempt(self, run_id: str, error: Error, state: State) -> Path | None:
        """Write down how the attempt ended that the run's process has left open (`RunFolder.leave_open`).

        Returns its folder; None where no attempt is open.
        """
        if not (self.root / run_id / "record.json").exists():
            return None
        with self._reopen(run_id) as run:
            latest = run.record.latest
            if latest is None or latest.state != "running":
                return None
            run.close_dead("", error, state)
            return run.path / f"attempt-{latest.attempt}"

    def _warn(self, message: str) -> None:
        """Once a store, however often it is read."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", escape.terminal(message))

    def _reopen(self, run_id: str) -> RunFolder:
        return RunFolder(self.root / run_id)

    def _folders(self) -> list[Path]:
        """Every folder of the store that has a record, be it one that cannot be read, by id."""
        with explained(self.root):
            try:
                with os.scandir(self.root) as entries:
                    names = sorted(entry.name for entry in entries)
            except FileNotFoundError:
                return []
        return [self.root / name for name in names if _has_record(self.root / name)]


def _has_record(folder: Path) -> bool:
    try:
        (folder / "record.json").lstat()
    except PermissionError:
        # Of another user: to be told of, unless it is something else's, such as lost+found.
        return re.fullmatch("[0-9a-f]{12}", folder.name) is not None
    except OSError:
        # No folder, or a link to nowhere or to itself.
        return False
    return True

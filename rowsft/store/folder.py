"""A run folder held by this process: attempts begin, fill in and finish, and nothing is ever overwritten."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from rowsft.errors import RunHeld, UserError
from rowsft.output import redact
from rowsft.record import SCHEMA_VERSION, Attempt, Error, RecordFile, State, config_faults, plain, read
from rowsft.store import claims, files
from rowsft.store.attempt import OpenAttempt, error_fields, state_of
from rowsft.store.identity import experiment_name, experiment_notes, identity
from rowsft.store.lock import RunLock
from rowsft.store.record import Record, UnreadableRecord, now, read_file, record_of, stale_closed

log = logging.getLogger(__name__)


class RunFolder:
    """`runs/<id>/` under this process's lock, from construction to `close()` (or the end of the `with` block).

    Without `config` the run must exist. Leaving the block with an attempt still open finishes it: oom, interrupted or
    failed by the exception that passed. A record.json that cannot be read is set aside as record.json.corrupt-N, bytes
    kept, and the run starts anew. Raises UserError when another process holds the run or the folder cannot be written.
    """

    def __init__(self, path: Path, config: dict | None = None):
        self.path = Path(path)
        self._made_run = self._made_folder = False
        with files.explained(self.path.parent):
            self._made_store = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may make it at the same moment: it belongs to the one whose call succeeds.
            with suppress(FileExistsError):
                self.path.mkdir()
                self._made_folder = True
        self._open: OpenAttempt | None = None
        # Whether another process writes down how an attempt ended that this one leaves open.
        self.is_left: Callable[[], bool] = lambda: False
        self._lock: RunLock | None = None
        try:
            self._lock = RunLock(self.path)
            with files.explained(self.path):
                for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("attempt-*/.*.tmp")]:
                    shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
            if config is None:
                self._fields = read_file(self.path)
            else:
                self._fields = self._read_or_create(config)
                if (name := experiment_name(config)) is not None:
                    self.add_experiment(name, experiment_notes(config))
        except BaseException as error:
            # A run that could not be entered, for want of space or for a setting, leaves no empty folder.
            if self._made_folder and not isinstance(error, RunHeld) and not (self.path / "record.json").exists():
                self._remove()
            if self._lock is not None:
                self._lock.release()
            raise

    @property
    def id(self) -> str:
        """The run's id: the folder's name."""
        return self.path.name

    @property
    def record(self) -> Record:
        """The record as this process holds it."""
        return record_of(self._fields, self.path)

    def attempt(self, number: int) -> Attempt:
        """The recorded fields of the attempt of that number."""
        return next(attempt for attempt in self._fields.attempts if attempt.attempt == number)

    def put(self, attempt: Attempt, state: State | None = None) -> None:
        """Write `attempt` in place of the one of its number, and the run's state where one is given."""
        attempts = [attempt if old.attempt == attempt.attempt else old for old in self._fields.attempts]
        self._fields = self._fields.changed(attempts=attempts, state=state or self._fields.state)
        self.write()

    def begin(self, **meta) -> OpenAttempt:
        """Start the next attempt (state running) with `meta` as its first fields; earlier attempts stay as they are."""
        if self._open is not None:
            raise RuntimeError(f"run {self.id}: attempt {self._open.number} is still open")
        self._fields = stale_closed(self._fields)
        names = (re.fullmatch(r"attempt-(\d{1,9})", path.name, re.ASCII) for path in self.path.glob("attempt-*"))
        on_disk = [int(name[1]) for name in names if name]
        number = max([0, *on_disk, *(attempt.attempt for attempt in self._fields.attempts)]) + 1
        with files.explained(self.path):
            (self.path / f"attempt-{number}").mkdir()
        begun = Attempt.of(attempt=number, state="running", started_at=now(), pid=os.getpid())
        self._fields = self._fields.changed(attempts=[*self._fields.attempts, begun], state="running")
        self._open = OpenAttempt(self, number)
        self._open.update(**meta)
        return self._open

    def leave_open(self) -> None:
        """Let go of the open attempt as it is: another process writes down how it ended (`Store.close_attempt`)."""
        attempt, self._open = self._open, None
        if attempt is not None:
            attempt.close_log()

    def withdraw(self) -> None:
        """Take back the open attempt, and the run if it is new: what was asked for cannot be run at all."""
        attempt, self._open = self._open, None
        if attempt is None:
            raise RuntimeError(f"run {self.id}: no attempt is open")
        attempt.close_log()
        if self._lock is not None:
            self._lock.check()
        shutil.rmtree(attempt.path, ignore_errors=True)
        if self._made_run:
            self._remove()
            return
        others = [other for other in self._fields.attempts if other.attempt != attempt.number]
        self._fields = self._fields.changed(attempts=others, state=others[-1].state if others else "pending")
        self.write()

    def _remove(self) -> None:
        # A damaged record that was set aside stays, and so does a store that holds anything.
        with suppress(OSError):
            for name in ("record.json", "config.yaml", "lock"):
                (self.path / name).unlink(missing_ok=True)
            claims.remove_all(self.path)
            self.path.rmdir()
            if self._made_store:
                self.path.parent.rmdir()

    def add_experiment(self, name: str, notes: dict | None = None) -> None:
        """Enter the run in one more experiment, with what that experiment says of itself (`experiment_notes`)."""
        own, _ = files.jsonable(redact.config(notes or {}))
        experiments, known = self._fields.experiments or [], self._fields.experiment_notes
        if name in experiments and (not own or known.get(name) == own):
            return
        experiments = experiments if name in experiments else [*experiments, name]
        self._fields = self._fields.changed(experiments=experiments, experiment_notes={**known, name: own})
        self.write()

    def close_dead(self, message: str, error: Error | None = None, state: State = "interrupted") -> None:
        """Write down as interrupted, with `message`, an attempt whose process is gone; nothing if there is none.

        error, state: what to write in the place of both.
        """
        closed = stale_closed(self._fields, error or message, state)
        if self._open is None and closed.attempts != self._fields.attempts:
            self._fields = closed
            self.write()

    def close(self, error: BaseException | None = None) -> None:
        """Finish an open attempt by `error` and give the lock back."""
        try:
            if self._open is not None and self.is_left():
                self.leave_open()
            if self._open is not None:
                self._open.finish(state_of(error), error=error_fields(error) if error else None)
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, _kind, error, _trace) -> None:
        self.close(error)

    def write(self) -> None:
        """Put the record on disk, whole or not at all."""
        if self._lock is not None:
            self._lock.check()
        text = json.dumps(plain(self._fields), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        files.write_atomic(self.path / "record.json", text.encode())

    def _read_or_create(self, config: dict) -> RecordFile:
        path = self.path / "record.json"
        if path.exists():
            try:
                return read_file(self.path)
            except UnreadableRecord as reason:
                aside = path.with_name(f"{path.name}.corrupt-{len(list(self.path.glob('record.json.corrupt-*'))) + 1}")
                with files.explained(self.path):
                    path.rename(aside)
                log.warning("%s; set aside as %s, the run starts anew", reason, aside.name)
        wrong = config_faults(config)
        if wrong:
            raise UserError(f"{wrong}; a record of this run could not be read back: correct the setting")
        content, _ = files.jsonable(config)
        files.write_atomic(self.path / "config.yaml", yaml.safe_dump(content, sort_keys=False).encode())
        new = {
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "state": "pending",
            "created_at": now(),
            "experiments": [],
            "experiment_notes": {},
            "config": content,
            "identity": identity(config),
            "attempts": [],
        }
        self._fields = read(new)
        self.write()
        self._made_run = True
        return self._fields

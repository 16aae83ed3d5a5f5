"""A record as it is read: checked, and with the state that the lock allows it to have."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.record import SCHEMA_VERSION, Attempt, Error, RecordFile, State, as_measured, migrated, read
from rowsft.store.confined import confined
from rowsft.store.files import explained, read_json
from rowsft.store.former_words import as_today
from rowsft.store.identity import identity
from rowsft.store.lock import is_held

STATES: tuple[State, ...] = ("pending", "running", "done", "failed", "oom", "interrupted")
FINAL_STATES = ("done", "failed", "oom", "interrupted")


class UnreadableRecord(Exception):
    """record.json is there but is not a whole record as rowsft/record/parts.py has it."""


@dataclass(frozen=True)
class Record:
    """One run as the store has it, attempts from the oldest on; `config` and `identity` are resolved configurations."""

    id: str
    state: State
    config: dict[str, Any]
    identity: dict[str, Any]
    experiments: list[str]
    folder: Path
    created_at: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    experiment_notes: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Attempt | None:
        """The latest attempt that is done: what the run reports. None when there is none yet.

        Step times and memory are those measured alone (`measure=alone`), where they were.
        """
        done = next((attempt for attempt in reversed(self.attempts) if attempt.state == "done"), None)
        return done and as_measured(done)

    @property
    def latest(self) -> Attempt | None:
        """The latest attempt, whatever became of it."""
        return self.attempts[-1] if self.attempts else None

    def file(self, name: str) -> Path | None:
        """Where the result's file of that name (predictions, curve, adapter) lies, or None.

        None too, with a warning, for a path that leads out of the run's folder.
        """
        entry = self.result.files.get(name) if self.result else None
        return confined(self.folder, entry.path) if entry and entry.path else None


def read_file(folder: Path) -> RecordFile:
    """Return what record.json holds, whichever version wrote it.

    Raises UnreadableRecord when it is damaged, UserError when the system refuses it or a newer version wrote it.
    """
    path = Path(folder) / "record.json"
    try:
        with explained(path):
            raw = read_json(path, strict=True)
    except UserError:
        raise
    except ValueError as error:
        raise UnreadableRecord(f"{path} is damaged ({type(error).__name__}: {error})") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(version, int):
        raise UnreadableRecord(f"{path} is not a run record (no schema_version)")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}, this rowsft reads up to {SCHEMA_VERSION}; "
            "upgrade rowsft or choose another store with store=FOLDER"
        )
    try:
        fields = read(migrated(raw))
        if fields.id != Path(folder).name:
            raise ValueError(f"id is {shortened(json.dumps(fields.id))}, expected the name of its folder")
    except ValueError as error:
        raise UnreadableRecord(f"{path} is not a whole run record ({error})") from error
    return fields


def read_record(folder: Path) -> Record:
    """Return the record of a run folder. A run that says running while nobody holds its lock reads as interrupted."""
    fields = read_file(folder)
    if _says_running(fields) and not is_held(folder):
        # Read again: a run that has ended in between says so now, and was never interrupted.
        begun, fields = len(fields.attempts), read_file(folder)
        if len(fields.attempts) == begun:
            fields = stale_closed(fields)
    return record_of(fields, Path(folder))


def record_of(fields: RecordFile, folder: Path) -> Record:
    """Return the record of a run folder from what its record.json holds."""
    return Record(
        id=fields.id,
        state=fields.state,
        config=as_today(dict(fields.config)),
        identity=_identity_of(dict(fields.config), folder),
        # Names were numbers where they read as such.
        experiments=[str(name) for name in fields.experiments or []],
        folder=folder,
        created_at=fields.created_at,
        attempts=fields.attempts,
        experiment_notes=fields.experiment_notes,
    )


def _identity_of(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """By today's rules, whichever version wrote the record: what is compared is told apart by the same settings."""
    try:
        return as_today(identity(config))
    except UserError as error:
        raise UnreadableRecord(f"{folder / 'record.json'} has a config that is none ({error})") from error


def _says_running(fields: RecordFile) -> bool:
    return fields.state == "running" or any(attempt.state == "running" for attempt in fields.attempts)


def stale_closed(fields: RecordFile, why: str | Error = "process gone", state: State = "interrupted") -> RecordFile:
    """Return the record with what still says running, although its process is gone, marked as interrupted.

    state: another one, where it is known.
    """
    ending: dict[str, Any] = {"state": state}
    if isinstance(why, Error):
        # From somebody who saw it end: of others the time is not known.
        ending |= {"error": why, "ended_at": now()}
    else:
        ending["error"] = Error(type="ProcessGone", message=why)
    attempts = [attempt.changed(**ending) if attempt.state == "running" else attempt for attempt in fields.attempts]
    return fields.changed(attempts=attempts, state=state if fields.state == "running" else fields.state)


def now() -> str:
    """The time as records carry it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

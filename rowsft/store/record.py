"""A record as it is read: checked, and with the state that the lock allows it to have."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rowsft.errors import UserError, shortened
from rowsft.store.confined import confined
from rowsft.store.files import explained, read_json
from rowsft.store.former_words import as_today
from rowsft.store.identity import identity
from rowsft.store.lock import is_held
from rowsft.store.schema import faults

SCHEMA_VERSION = 1
STATES = ("pending", "running", "done", "failed", "oom", "interrupted")
FINAL_STATES = ("done", "failed", "oom", "interrupted")


class UnreadableRecord(Exception):
    """record.json is there but is not a whole record as rowsft/store/schema.py has it."""


@dataclass(frozen=True)
class Record:
    """One run as the store tells it; `attempts` are the dicts of docs/architecture.md, oldest first."""

    id: str
    state: str
    config: dict
    identity: dict
    experiments: list[str]
    folder: Path
    created_at: str | None = None
    attempts: list[dict] = field(default_factory=list)
    experiment_notes: dict = field(default_factory=dict)

    @property
    def result(self) -> dict | None:
        """The latest attempt that is done: what the run reports. None when there is none yet."""
        return next((attempt for attempt in reversed(self.attempts) if attempt["state"] == "done"), None)

    @property
    def latest(self) -> dict | None:
        """The latest attempt, whatever became of it."""
        return self.attempts[-1] if self.attempts else None

    def file(self, name: str) -> Path | None:
        """Where the result's file of that name (predictions, curve, adapter) lies, or None.

        None too, with a warning, for a path that leads out of the run's folder.
        """
        entry = ((self.result or {}).get("files") or {}).get(name) or {}
        return confined(self.folder, entry["path"]) if "path" in entry else None


def read_raw(folder: Path) -> dict:
    """record.json as written.

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
    if not isinstance(version, int):
        raise UnreadableRecord(f"{path} is not a run record (no schema_version)")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}, this rowsft reads up to {SCHEMA_VERSION}; "
            "upgrade rowsft or choose another store with store=FOLDER"
        )
    wrong = faults(raw)
    if wrong is None and raw["id"] != Path(folder).name:
        wrong = f"id is {shortened(raw['id'])}, expected the name of its folder"
    if wrong:
        raise UnreadableRecord(f"{path} is not a whole run record ({wrong})")
    return raw


def read_record(folder: Path) -> Record:
    """The record of a run folder. A run that says running while nobody holds its lock reads as interrupted."""
    raw = read_raw(folder)
    if _says_running(raw) and not is_held(folder):
        # Read again: a run that has ended in between says so now, and was never interrupted.
        begun, raw = len(raw["attempts"]), read_raw(folder)
        if len(raw["attempts"]) == begun:
            close_stale(raw)
    return record_of(raw, Path(folder))


def record_of(raw: dict, folder: Path) -> Record:
    """The record that a checked record.json holds."""
    return Record(
        id=raw["id"],
        state=raw["state"],
        config=as_today(raw["config"]),
        identity=_identity_of(raw, folder),
        # Names were numbers where they read as such.
        experiments=[str(name) for name in raw.get("experiments") or []],
        folder=folder,
        created_at=raw.get("created_at"),
        attempts=raw["attempts"],
        experiment_notes=raw.get("experiment_notes") or {},
    )


def _identity_of(raw: dict, folder: Path) -> dict:
    """By today's rules, whichever version wrote the record: what is compared is told apart by the same settings."""
    try:
        return as_today(identity(raw["config"]))
    except UserError as error:
        raise UnreadableRecord(f"{folder / 'record.json'} has a config that is none ({error})") from error


def _says_running(raw: dict) -> bool:
    return raw["state"] == "running" or any(attempt["state"] == "running" for attempt in raw["attempts"])


def close_stale(raw: dict, message: str = "process gone") -> bool:
    """Mark, in memory, what still says running although its process is gone; returns whether there was any."""
    stale = [attempt for attempt in raw["attempts"] if attempt["state"] == "running"]
    for attempt in stale:
        attempt["state"] = "interrupted"
        attempt["error"] = {"type": "ProcessGone", "message": message, "traceback": None, "phase": None}
    if raw["state"] == "running":
        raw["state"] = "interrupted"
    return bool(stale)


def now() -> str:
    """The time as records carry it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

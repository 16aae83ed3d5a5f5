"""Where the run of a config lies: under its id, or under the id that an older version gave it."""

import json
import os
from pathlib import Path

from rowsft.errors import UserError
from rowsft.output import redact
from rowsft.record import Attempt, is_alone
from rowsft.store.files import explained, read_json, read_regular
from rowsft.store.identity import old_run_id, run_id

# In every record since configs carry what their method ignores.
_TODAYS = b'"ignores"'


class Places:
    """The folders of a store, for finding the one of a config.

    listed: read the list of folders once, at the first question, instead of asking the system for each: for a sweep,
    whose runs are placed before any of them starts.
    """

    def __init__(self, root: str | Path, listed: bool = False):
        self.root = Path(root)
        #: Of a listed store, the finished runs that were met: id -> their experiments, experiment_notes and is_alone.
        self.finished: dict[str, dict] = {}
        self._listed = listed
        self._names: set[str] | None = self._list() if listed else None
        self._older: dict[str, list[str]] | None = None

    def place(self, config: dict) -> Path:
        """The folder of the run of this resolved config, which need not exist.

        A run is looked for under its id, under the id that the whole config gave it before, and among the records of
        older versions whose configs differ in nothing that counts. Of several the first with a finished attempt holds.
        """
        # A secret neither makes a run another one nor can be guessed from its id.
        config = redact.config(config)
        new = run_id(config)
        if self._has(new) and self._finished(new):
            return self.root / new
        old = old_run_id(config)
        known = [name for name in (new, old) if self._has(name)]
        if old in known and old != new and self._finished(old):
            return self.root / old
        others = self._same(config, new)
        finished = [name for name in others if self._finished(name)]
        return self.root / next(iter([*finished, *known, *others]), new)

    def _list(self) -> set[str]:
        if not self.root.is_dir():
            return set()
        with explained(self.root), os.scandir(self.root) as entries:
            return {entry.name for entry in entries}

    def _has(self, name: str) -> bool:
        return name in self._names if self._names is not None else (self.root / name).exists()

    def _finished(self, name: str) -> bool:
        try:
            raw = read_json(self.root / name / "record.json", strict=True)
            done = [attempt for attempt in raw["attempts"] if attempt["state"] == "done"]
            if not done:
                return False
            if self._listed:
                known = {key: raw.get(key) for key in ("experiments", "experiment_notes")}
                # Of a thousand runs, reading the whole attempts would take a second.
                alone = {key: done[-1].get(key) for key in ("concurrent_jobs", "alone")}
                self.finished[name] = {**known, "is_alone": is_alone(Attempt.of(**alone))}
            return True
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _same(self, config: dict, new: str) -> list[str]:
        """Runs of older versions that are the same run, sorted."""
        method = config.get("method")
        name = str(method.get("name")) if isinstance(method, dict) else ""
        if self._older is None or not self._listed:
            # One question concerns one method, whose name in a record's bytes is sooner found than its JSON is read.
            self._older = self._read_older(b"" if self._listed else json.dumps(name, ensure_ascii=False).encode())
        return self._older.get(new, [])

    def _read_older(self, mark: bytes) -> dict[str, list[str]]:
        """The id that a run would have today -> the folders of runs recorded before there was `ignores`."""
        names_by_id: dict[str, list[str]] = {}
        for name in sorted(self._names if self._names is not None else self._list()):
            path = self.root / name / "record.json"
            try:
                text = read_regular(path)
                if _TODAYS not in text and mark in text:
                    recorded = redact.config(read_json(path, strict=True)["config"])
                    names_by_id.setdefault(run_id(recorded), []).append(name)
            except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError):
                continue
        return names_by_id

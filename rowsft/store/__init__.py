"""runs/: a store of runs addressed by what determines their result (layout: docs/architecture.md and runs/README.md).

    with Store("runs").open(config) as run:        # the run's lock is held until the block ends
        if run.record.result is None:
            attempt = run.begin(environment={...})
            attempt.update(seconds={"load": 1.2})
            attempt.write_predictions(rows)
            attempt.finish("done", metrics={...})

Never imports torch.
"""

import logging
from pathlib import Path

from rowsft.errors import UserError
from rowsft.store.attempt import Attempt
from rowsft.store.files import explained, write_csv, write_jsonl
from rowsft.store.folder import RunFolder
from rowsft.store.identity import RESULTS_VERSION, experiment_name, identity, run_id
from rowsft.store.places import Places
from rowsft.store.record import SCHEMA_VERSION, STATES, Record, UnreadableRecord, read_record

__all__ = [
    "RESULTS_VERSION",
    "SCHEMA_VERSION",
    "STATES",
    "Attempt",
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

    def open(self, config: dict) -> RunFolder:
        """The run of this resolved config, locked, created (state pending) if it is new, entered in its experiment.

        Raises UserError when another process works on it, when the folder cannot be written or is full, and when
        its record was written by a newer version.
        """
        return RunFolder(Places(self.root).place(config), config)

    def runs(self, experiment: str | None = None) -> list[Record]:
        """Every readable run (of one experiment), by id. An unreadable record is skipped with a one-line warning."""
        records = []
        for folder in self._folders():
            try:
                records.append(read_record(folder))
            except UnreadableRecord as reason:
                log.warning("%s: skipped; %s", reason, _MEND)
            except UserError as reason:
                log.warning("%s: skipped", reason)
        return [record for record in records if experiment is None or experiment in record.experiments]

    def experiments(self) -> list[str]:
        """The names of the experiments that the store has runs of, sorted."""
        return sorted({name for record in self.runs() for name in record.experiments})

    def get(self, prefix: str) -> Record:
        """The one run whose id starts with `prefix`. Raises UserError when there is none, several or it is damaged."""
        found = [folder for folder in self._folders() if folder.name.startswith(prefix)]
        exact = [folder for folder in found if folder.name == prefix]
        if len(exact or found) != 1 or not prefix:
            seen = f"matches {', '.join(folder.name for folder in found)}" if found else "is not in it"
            raise UserError(f"run {prefix!r}: {seen} (store {self.root}); give one id that `rowsft runs` lists")
        try:
            return read_record((exact or found)[0])
        except UnreadableRecord as reason:
            raise UserError(f"{reason}; {_MEND}") from reason

    def is_done(self, run_id: str) -> bool:
        """Whether the run has an attempt that is done. False too when its record is absent or damaged."""
        try:
            return (self.root / run_id / "record.json").exists() and read_record(self.root / run_id).result is not None
        except UnreadableRecord:
            return False

    def add_experiment(self, run_id: str, name: str, notes: dict | None = None) -> None:
        """Enter an existing run in one more experiment; see `RunFolder.add_experiment`."""
        if name not in self.get(run_id).experiments or notes:
            with self._reopen(run_id) as run:
                run.add_experiment(name, notes)

    def close_dead(self, run_id: str, message: str) -> None:
        """Write down why a run's process went away; does nothing when the run is not one that says running."""
        if (self.root / run_id / "record.json").exists():
            with self._reopen(run_id) as run:
                run.close_dead(message)

    def _reopen(self, run_id: str) -> RunFolder:
        self.get(run_id)
        return RunFolder(self.root / run_id)

    def _folders(self) -> list[Path]:
        if not self.root.exists():
            return []
        with explained(self.root):
            return sorted(path.parent for path in self.root.glob("*/record.json"))

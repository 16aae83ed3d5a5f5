"""The run that a user means: by its id, the beginning of it, or its folder."""

from pathlib import Path

from rowsft.errors import UserError, shortened
from rowsft.store import Record, Store


def find_run(run: str, store: str | Path) -> Record:
    """The run of that id (or its beginning) in `store`, or of that run folder, which may lie anywhere.

    Raises UserError for a run that is unknown or damaged, and for a beginning that several ids share.
    """
    folder = Path(run)
    try:
        is_folder = (folder / "record.json").is_file()
    except OSError as error:
        raise UserError(
            f"run {shortened(run)}: cannot be looked up ({error.strerror}); give one id or folder"
        ) from error
    if is_folder:
        # A link to a run and `.` have names of their own; a record knows its folder by its id.
        folder = folder.resolve()
        return Store(folder.parent).get(folder.name)
    return Store(store).get(run)


def finished_run(run: str, store: str | Path) -> Record:
    """`find_run`, and a UserError for a run that has no finished attempt."""
    record = find_run(run, store)
    if record.result is None:
        method = (record.config.get("method") or {}).get("name")
        raise UserError(
            f"run {record.id} ({method}) is {record.state} and has no finished attempt; expected one that is done: "
            "run its command again first"
        )
    return record

"""The comparison of an experiment's methods as a W&B table, in an offline run of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rowsft.errors import UserError
from rowsft.output import escape, redact
from rowsft.tracking import names, offline
from rowsft.tracking.wandb_tracker import WandbTracker


def write_comparison(
    rows: Sequence[Mapping[str, Any]], experiment: str | None, folder: str | Path | None, **settings: Any
) -> str:
    """Write the rows of a report as an offline run below `folder` and return its id, the same for every report of an
    experiment: the latest replaces those before.

    rows: dicts of numbers and texts; a column is a key of any of them. settings: project and entity of `WandbTracker`.
    Raises UserError where W&B cannot write.
    """
    run_id = f"comparison-{escape.file_name(experiment or 'all')}"
    chosen = {key: value for key, value in settings.items() if value is not None}
    tracker = WandbTracker(mode="offline", dir=None if folder is None else str(folder), **chosen)
    known = offline.offline_runs(offline.wandb_folder(folder))
    offline.replace(run for run in known if run.id == run_id)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[redact.config({key: row.get(key)})[key] for key in columns] for row in rows]
    tracker.start(run_id, {"method": {"name": names.COMPARISON}}, experiment or "")
    tracker.table(names.COMPARISON, columns, cells)
    complete = tracker.working
    tracker.finish("done")
    if not complete:
        raise UserError(f"comparison: W&B could not write it below {folder or '.'}; the warning above says why")
    return run_id

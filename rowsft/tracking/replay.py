"""A recorded attempt written for W&B again: one fresh offline run with all of its history."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.store import Record
from rowsft.store.record import FINAL_STATES
from rowsft.tracking import content, offline
from rowsft.tracking.wandb_tracker import WandbTracker


def wandb_id(record: Record) -> str | None:
    """Return the id on W&B of the attempt that a run reports, else of its latest; None where none has ended."""
    attempt = record.result or record.latest
    return f"{record.id}-{attempt.attempt}" if attempt is not None and attempt.state in FINAL_STATES else None


def replay(record: Record, folder: str | Path | None, **settings: Any) -> str:
    """Write the attempt that a run reports, else its latest, as an offline run below `folder`; return its id.

    Offline runs of the same id there are replaced, so that nothing is uploaded twice. settings: project, entity, tags
    and log_adapter of `WandbTracker`; those left out or None are those that the run was tracked with. Raises UserError
    for a run without an attempt that has ended, for damaged files, and where W&B cannot write.
    """
    attempt, run_id = record.result or record.latest, wandb_id(record)
    if attempt is None or run_id is None:
        raise UserError(f"run {record.id} is {record.state}: expected one with an attempt that has ended")
    try:
        curve = content.curve(attempt, record.folder)
        content.memory_step(attempt, record.folder)
    except content.DAMAGED as error:
        raise UserError(
            f"run {record.id}: its curve or memory is damaged ({type(error).__name__}: {shortened(error)}); "
            "run it again with --rerun"
        ) from error
    chosen = _tracked_with(record.config) | {key: value for key, value in settings.items() if value is not None}
    tracker = WandbTracker(mode="offline", dir=None if folder is None else str(folder), **chosen)
    known = offline.offline_runs(offline.wandb_folder(folder))
    offline.replace(run for run in known if run.id == run_id)
    tracker.start(run_id, record.config, str(record.config.get("experiment_name") or ""))
    for step, values in curve:
        tracker.log(step, values)
    tracker.show(attempt, record.folder)
    tracker.summary(content.final_numbers(attempt))
    complete = tracker.working
    tracker.finish(attempt.state)
    if not complete:
        raise UserError(f"run {record.id}: W&B could not write it below {folder or '.'}; the warning above says why")
    return run_id


def _tracked_with(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = config.get("tracker")
    if not isinstance(settings, Mapping) or not str(settings.get("_target_", "")).endswith(".WandbTracker"):
        return {}
    return {key: settings[key] for key in ("project", "entity", "tags", "log_adapter") if settings.get(key)}

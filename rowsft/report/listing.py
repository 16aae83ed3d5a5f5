"""What the store holds, one line a run: for `rowsft runs`."""

from rich.table import Table
from rich.text import Text

from rowsft.report.settings import dig, named, primary
from rowsft.store import Record, Store

COLOURS = {"done": "green", "running": "cyan", "pending": "dim", "failed": "red", "oom": "red", "interrupted": "yellow"}


def runs_list(store: Store, experiment: str | None = None) -> list[dict]:
    """One JSON-able dict a run (of one experiment), oldest first.

    id, state, method, model, task, seed, experiments, metric, split, value (of the latest finished attempt), started_at
    and seconds (of the latest attempt), attempts, reason (of a failure, or what became of a repetition), folder. A
    run with a finished attempt is done, whatever became of later ones.
    """
    entries = [entry(record) for record in store.runs(experiment)]
    return sorted(entries, key=lambda run: (run["started_at"] or "", run["id"]))


def runs_table(store: Store, experiment: str | None = None) -> Table:
    """The same as a table for the terminal."""
    entries = runs_list(store, experiment)
    counts = {state: sum(run["state"] == state for run in entries) for state in COLOURS}
    caption = f"{len(entries)} runs in {store.root}: " + (
        ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none"
    )
    table = Table(caption=caption, caption_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("id", "state", "method", "model", "task", "seed", "experiment", "metric", "started", "seconds"):
        table.add_column(name, justify="right" if name in ("seed", "seconds") else "left", no_wrap=name == "id")
    for run in entries:
        result = f"{run['metric']} {run['value']:.4f}" if run["value"] is not None else ""
        result = "; ".join(filter(None, [result, run["reason"]]))
        cells = (
            run["id"],
            Text(run["state"], style=COLOURS[run["state"]]),
            run["method"],
            run["model"],
            run["task"],
            "" if run["seed"] is None else str(run["seed"]),
            ", ".join(run["experiments"]),
            result,
            (run["started_at"] or "")[:16].replace("T", " "),
            "" if run["seconds"] is None else f"{run['seconds']:,.0f}",
        )
        # Text, not markup: a run's own words may hold square brackets.
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return table


def entry(record: Record) -> dict:
    """One run of `runs_list`."""
    latest, result = record.latest or {}, record.result or {}
    split = next((split for split in ("test", "validation") if primary(result, split) is not None), None)
    error = latest.get("error") or {}
    message = (error.get("message") or "").strip().splitlines()
    reason = ": ".join(filter(None, [error.get("type"), message[0] if message else None])) or None
    repeated = bool(result) and record.state not in ("done", "running")
    return {
        "id": record.id,
        # A finished result is not lost by a repetition that did not finish.
        "state": "done" if repeated else record.state,
        "method": named(record.config, "method"),
        "model": named(record.config, "model"),
        "task": named(record.config, "task"),
        "seed": record.config.get("seed"),
        "experiments": record.experiments,
        "metric": result.get("primary_metric") if split else None,
        "split": split,
        "value": primary(result, split) if split else None,
        "started_at": latest.get("started_at"),
        "seconds": dig(latest, "seconds", "total"),
        "attempts": len(record.attempts),
        "reason": f"attempt {latest['attempt']} {record.state}" if repeated else reason,
        "folder": str(record.folder),
    }

"""What the store holds, one line a run: for `rowsft runs`."""

from rich.table import Table
from rich.text import Text

from rowsft.output import escape
from rowsft.report.groups import compared, labels, model_label
from rowsft.report.settings import (
    LEARNING_RATE,
    WATCHING,
    determining,
    dig,
    failure,
    named,
    plain,
    primary,
    short_names,
    text_of,
)
from rowsft.store import Record, Store

COLOURS = {"done": "green", "running": "cyan", "pending": "dim", "failed": "red", "oom": "red", "interrupted": "yellow"}
#: A line shows as many differing settings; --json has all.
_MOST_SETTINGS = 5
#: Columns that a terminal of fewer characters goes without.
_WIDE = {"started": 130, "seconds": 100}


def runs_list(store: Store, experiment: str | None = None) -> list[dict]:
    """One JSON-able dict a run (of one experiment), oldest first.

    id, state, method, model, task, seed, differs ({setting: value} of what differs between the listed runs, the seed
    too), experiments, metric, split, value (of the latest finished attempt), started_at and seconds (of the latest
    attempt), attempts, reason (of a failure, or what became of a repetition), folder. A run with a finished attempt is
    done, whatever became of later ones.
    """
    records = store.runs(experiment)
    differs, named_groups = differing_settings(records), labels(records)
    entries = []
    for record in records:
        task, model = named_groups[record.id]
        entries.append(entry(record) | {"task": task, "model": model, "differs": differs[record.id]})
    return sorted(entries, key=lambda run: (run["started_at"] or "", run["id"]))


def differing_settings(records: list[Record]) -> dict[str, dict[str, object]]:
    """{run id: its value of each setting that differs between the runs}.

    Settings of a method count where they differ between runs of that method; seeds inside groups follow `seed`.
    """
    settings = {
        record.id: {key: value for key, value in determining(record).items() if _tells(key)} for record in records
    }
    methods = {record.id: named(record.config, "method") for record in records}
    values: dict[tuple[str, str], set[str]] = {}
    for name, mine in settings.items():
        for key, value in mine.items():
            values.setdefault((_scope(key, methods[name]), key), set()).add(text_of(value))
    return {
        name: {key: mine[key] for key in sorted(mine, key=_rank) if len(values[_scope(key, methods[name]), key]) > 1}
        for name, mine in settings.items()
    }


def _tells(key: str) -> bool:
    if key.rsplit(".", 1)[-1] == "seed":
        return key == "seed"
    # The method's name and what a table shares have columns of their own.
    return compared(key) or (key.startswith("method.") and key not in ("method.name", "method._target_"))


def _scope(key: str, method: str) -> str:
    return method if key.startswith("method.") else ""


def _rank(key: str) -> tuple[int, str]:
    """The order in which a reader looks for what differs."""
    first = [key.startswith("budget."), key.startswith("method."), key == LEARNING_RATE, key not in WATCHING, True]
    return first.index(True), key


def runs_table(store: Store, experiment: str | None = None, width: int = 160) -> Table:
    """The same as a table for a terminal of `width` characters. What all runs share stands beneath it."""
    entries = runs_list(store, experiment)
    rows = [_cells(run) for run in entries]
    names = short_names({key for run in entries for key in run["differs"] if key != "seed"})
    for run, cells in zip(entries, rows, strict=True):
        cells["differs in"] = _differs(run["differs"], names)
    shared = {}
    if len(rows) > 1:
        shared = {name: rows[0][name] for name in ("model", "task", "experiment") if _all_same(rows, name)}
    hidden = {*shared, *(name for name, needed in _WIDE.items() if width < needed)}
    if not any(cells["differs in"] for cells in rows):
        hidden.add("differs in")
    caption = Text(escape.terminal(_caption(store, entries, shared)))
    table = Table(caption=caption, caption_justify="left", box=None, header_style="bold")
    table.pad_edge = False
    shown = [name for name in _COLUMNS if name not in hidden]
    for name in shown:
        table.add_column(name, justify="right" if name in ("seed", "seconds") else "left", no_wrap=name == "id")
    for run, cells in zip(entries, rows, strict=True):
        # Text, not markup: a run's own words may hold square brackets.
        table.add_row(
            *(
                Text(escape.terminal(cells[name]), style=COLOURS[run["state"]] if name == "state" else "")
                for name in shown
            )
        )
    return table


_COLUMNS = (
    "id",
    "state",
    "method",
    "model",
    "task",
    "seed",
    "differs in",
    "experiment",
    "metric",
    "started",
    "seconds",
)


def _cells(run: dict) -> dict[str, str]:
    result = f"{run['metric']} {run['value']:.4f}" if run["value"] is not None else ""
    return {
        "id": run["id"],
        "state": run["state"],
        "method": run["method"],
        "model": run["model"],
        "task": run["task"],
        "seed": "" if run["seed"] is None else str(run["seed"]),
        "experiment": ", ".join(run["experiments"]),
        "metric": "; ".join(filter(None, [result, run["reason"]])),
        "started": (run["started_at"] or "")[:16].replace("T", " "),
        "seconds": "" if run["seconds"] is None else f"{run['seconds']:,.0f}",
    }


def _differs(differs: dict[str, object], names: dict[str, str]) -> str:
    texts = [f"{names[key]}={plain(value)}" for key, value in differs.items() if key in names]
    more = [f"+{len(texts) - _MOST_SETTINGS} more"] if len(texts) > _MOST_SETTINGS else []
    return ", ".join([*texts[:_MOST_SETTINGS], *more])


def _all_same(rows: list[dict[str, str]], name: str) -> bool:
    return len({cells[name] for cells in rows}) == 1 and bool(rows[0][name])


def _caption(store: Store, entries: list[dict], shared: dict[str, str]) -> str:
    counts = {state: sum(run["state"] == state for run in entries) for state in COLOURS}
    states = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none"
    same = "; all: " + ", ".join(f"{name} {value}" for name, value in shared.items()) if shared else ""
    return f"{len(entries)} runs in {store.root}: {states}{same}"


def entry(record: Record) -> dict:
    """One run of `runs_list`, but for what differs between runs."""
    latest, result = record.latest or {}, record.result or {}
    split = next((split for split in ("test", "validation") if primary(result, split) is not None), None)
    repeated = bool(result) and record.state not in ("done", "running")
    return {
        "id": record.id,
        # A finished result is not lost by a repetition that did not finish.
        "state": "done" if repeated else record.state,
        "method": named(record.config, "method"),
        "model": model_label(record),
        "task": named(record.config, "task"),
        "seed": record.config.get("seed"),
        "experiments": record.experiments,
        "metric": result.get("primary_metric") if split else None,
        "split": split,
        "value": primary(result, split) if split else None,
        "started_at": latest.get("started_at"),
        "seconds": dig(latest, "seconds", "total"),
        "attempts": len(record.attempts),
        "reason": f"attempt {latest['attempt']} {record.state}" if repeated else failure(record),
        "folder": str(record.folder),
    }

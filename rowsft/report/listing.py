"""What the store holds, one line a run: for `rowsft runs`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from rowsft.output import escape
from rowsft.output.quantities import NONE, duration, mib, number, text
from rowsft.report.columns import Column, Sheet, words
from rowsft.report.filtering import matching, ordered
from rowsft.report.grid import STATE_COLOURS, grid, unfolded
from rowsft.report.groups import compared, labels, model_label
from rowsft.report.left_out import configured
from rowsft.report.settings import LEARNING_RATE, WATCHING, determining, failure, named, primary, short_names
from rowsft.report.settings import text_of as key_of
from rowsft.store import Record, Store, progress
from rowsft.store.progress import Progress

#: A line shows as many differing settings; --json has all.
_MOST_SETTINGS = 5
#: Columns that a terminal of fewer characters goes without.
_WIDE = {"started": 130, "seconds": 100}


@dataclass
class Run:
    """One run as it is listed, JSON-able with `vars`.

    A run with a finished attempt is done, whatever became of later ones. metric, split, value: of the latest finished
    attempt. started_at, seconds: of the latest attempt. reason: of a failure, or what became of a repetition. differs:
    {setting: value} of what differs between the listed runs, the seed too. progress: the fields of
    `rowsft.store.progress.Progress` of a running run.
    """

    id: str
    state: str
    method: str
    model: str
    task: str
    seed: int | None
    experiments: list[str]
    metric: str | None
    split: str | None
    value: float | None
    started_at: str | None
    seconds: float | None
    attempts: int
    reason: str | None
    folder: str
    progress: dict[str, object] | None = None
    differs: dict[str, object] = field(default_factory=dict)

    @property
    def started(self) -> str:
        """When the latest attempt began, to the minute."""
        return (self.started_at or "")[:16].replace("T", " ")


_STATE, _METHOD, _MODEL, _TASK = (words(name, name) for name in ("state", "method", "model", "task"))
_SEED: Column[Run] = Column("seed", "seed", lambda run: "" if run.seed is None else str(run.seed))


@dataclass(frozen=True)
class Query:
    """What is listed: of one experiment, where all conditions hold, in the order of a key (see filtering)."""

    experiment: str | None = None
    where: Sequence[str] = ()
    sort: str | None = None


def runs_list(store: Store, query: Query = Query()) -> list[Run]:
    """Return the runs of the store that `query` asks for, oldest first unless it says otherwise.

    Raises UserError for conditions and keys that cannot be read or that no run has.
    """
    return _found(store.runs(query.experiment), query)


def chosen(records: list[Record], where: Sequence[str], sort: str | None = None) -> list[Record]:
    """Return the records that every condition holds for, by `sort`. Raises UserError as `runs_list` does."""
    rows = {record.id: _values(record, run) for record, run in _listed(records)} if where or sort else {}
    if where:
        kept = set(matching(rows, where))
        records = [record for record in records if record.id in kept]
    if sort is not None:
        place = {name: number for number, name in enumerate(ordered(rows, sort))}
        records = sorted(records, key=lambda record: place[record.id])
    return records


def _found(records: list[Record], query: Query) -> list[Run]:
    oldest_first = sorted(
        records, key=lambda record: (record.latest.started_at or "" if record.latest else "", record.id)
    )
    # Labels are no longer than it takes among the runs that are shown.
    listed = _listed(chosen(oldest_first, query.where, query.sort))
    differs = differing_settings([record for record, _ in listed])
    for _, run in listed:
        run.differs = differs[run.id]
    return [run for _, run in listed]


def _listed(records: list[Record]) -> list[tuple[Record, Run]]:
    labelled = labels(records)
    listed = [(record, entry(record)) for record in records]
    for record, run in listed:
        run.task, run.model = labelled[record.id]
    return listed


def _values(record: Record, run: Run) -> dict[str, object]:
    """Return what conditions and orders are about: the settings that the run reads, and what is listed of it."""
    own = {name: value for name, value in vars(run).items() if name not in ("differs", "progress")}
    far = run.progress or dict.fromkeys(("phase", "step", "steps"))
    several = {
        "experiment": tuple(run.experiments),
        "experiments": tuple(run.experiments),
        "model": tuple({model_label(record): 0, run.model: 0}),
        "task": tuple({named(record.config, "task"): 0, run.task: 0}),
    }
    own |= {name: far[name] for name in ("phase", "step", "steps")}
    return {**configured(record), **own, "started": run.started_at, **several}


def differing_settings(records: list[Record]) -> dict[str, dict[str, object]]:
    """Return {run id: its value of each setting that differs between the runs}.

    Settings of a method count where they differ between runs of that method; seeds inside groups follow `seed`.
    """
    settings = {
        record.id: {key: value for key, value in determining(record).items() if _tells(key)} for record in records
    }
    methods = {record.id: named(record.config, "method") for record in records}
    values: dict[tuple[str, str], set[str]] = {}
    for name, mine in settings.items():
        for key, value in mine.items():
            values.setdefault((_scope(key, methods[name]), key), set()).add(key_of(value))
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
    """Return the order in which a reader looks for what differs."""
    first = [key.startswith("budget."), key.startswith("method."), key == LEARNING_RATE, key not in WATCHING, True]
    return first.index(True), key


def runs_table(store: Store, query: Query = Query(), width: int = 160) -> Table | Text:
    """Return the same as a table for a terminal of `width` characters. What all runs share stands beneath it."""
    records = store.runs(query.experiment)
    runs = _found(records, query)
    names = short_names({key for run in runs for key in run.differs if key != "seed"})
    columns: list[Column[Run]] = [
        Column("id", "id", lambda run: run.id, kind="name"),
        *(_STATE, _METHOD, _MODEL, _TASK, _SEED),
        Column("differs", "differs in", lambda run: _differs(run.differs, names), kind="words"),
        Column("experiments", "experiment", lambda run: ", ".join(run.experiments), kind="words"),
        Column("value", "metric", _metric, kind="words"),
        words("started", "started"),
        Column("seconds", "seconds", lambda run: "" if run.seconds is None else f"{run.seconds:,.0f}"),
    ]
    shared = {}
    if len(runs) > 1:
        whole = {column.heading: {column.cell(run) for run in runs} for column in columns}
        shared = {name: whole[name].pop() for name in ("model", "task", "experiment") if len(whole[name]) == 1}
        shared = {name: value for name, value in shared.items() if value}
    hidden = {*shared, *(name for name, needed in _WIDE.items() if width < needed)}
    if not any(key in names for run in runs for key in run.differs):
        hidden.add("differs in")
    shown = [column for column in columns if not hidden & {column.key, column.heading}]
    sheet, caption = Sheet("", shown, runs), _caption(store, runs, len(records), shared)
    as_text = unfolded(sheet, width, caption)
    return as_text or grid(sheet, caption=Text(escape.terminal(caption)), caption_justify="left")


def sized_table(records: list[Record], sizes: Mapping[str, int]) -> Table:
    """Return runs as a table with the size of their folders. sizes: bytes by run id."""
    columns: list[Column[Run]] = [
        Column("id", "id", lambda run: run.id, kind="name"),
        *(_STATE, _METHOD, _MODEL, _TASK, _SEED),
        Column("experiments", "experiment", lambda run: ", ".join(run.experiments), kind="words"),
        Column("value", "metric", _metric, kind="words"),
        Column("size", "MiB", lambda run: mib(sizes[run.id])),
    ]
    return grid(Sheet("", columns, [run for _, run in _listed(records)]))


def page_sheet(records: list[Record]) -> Sheet[Run]:
    """Return the runs as a report's page lists them, by id."""
    columns: list[Column[Run]] = [
        Column("id", "run", lambda run: run.id, kind="name"),
        *(_STATE, _METHOD, _TASK, _MODEL, _SEED),
        Column(
            "value", "metric", lambda run: NONE if run.value is None else f"{run.split} {run.metric} {run.value:.4f}"
        ),
        Column("seconds", "seconds", ",.0f"),
        Column("started", "started (UTC)", lambda run: run.started or NONE, kind="words"),
    ]
    return Sheet("Runs", columns, [entry(record) for record in sorted(records, key=lambda record: record.id)])


def _metric(run: Run) -> str:
    result = "" if run.metric is None else f"{run.metric} is no number"
    if run.value is not None:
        result = f"{run.metric} {run.value:.4f}"
    return "; ".join(filter(None, [result, run.reason, _progress(run)]))


def _progress(run: Run) -> str:
    """Return the phase and step of a running run, in words."""
    if run.progress is None:
        return ""
    far = Progress(**run.progress)  # type: ignore[arg-type]
    steps = f" {number(far.step, ',')}/{far.steps:,}" if far.steps is not None else ""
    loss = "" if far.loss is None else f", loss {far.loss:.4f}"
    left = "" if far.left_seconds is None else f", {duration(far.left_seconds)} left"
    return f"{far.phase}{steps}{loss}{left}"


def _differs(differs: dict[str, object], names: dict[str, str]) -> str:
    texts = [f"{names[key]}={text(value)}" for key, value in differs.items() if key in names]
    more = [f"+{len(texts) - _MOST_SETTINGS} more"] if len(texts) > _MOST_SETTINGS else []
    return ", ".join([*texts[:_MOST_SETTINGS], *more])


def _caption(store: Store, runs: list[Run], of: int, shared: dict[str, str]) -> str:
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATE_COLOURS if counts[state]) or "none"
    same = "; all: " + ", ".join(f"{name} {value}" for name, value in shared.items()) if shared else ""
    number = f"{len(runs)}{f' of {of}' if of != len(runs) else ''}"
    return f"{number} runs in {store.root}: {states}{same}"


def entry(record: Record) -> Run:
    """Return one run of `runs_list`, but for what differs between runs."""
    latest, result = record.latest, record.result
    values = {split: primary(result, split) for split in ("test", "validation")} if result else {}
    # A metric that is no number on the test split (null) is not made up for by that of validation.
    evaluated = [split for split in values if result and result.primary_metric in (result.metrics.get(split) or {})]
    split = next(iter(evaluated), None)
    far = progress.read(record.folder) if record.state == "running" else None
    repeated = bool(result) and record.state not in ("done", "running")
    return Run(
        id=record.id,
        # A finished result is not lost by a repetition that did not finish.
        state="done" if repeated else record.state,
        method=named(record.config, "method"),
        model=model_label(record),
        task=named(record.config, "task"),
        seed=record.config.get("seed"),
        experiments=record.experiments,
        metric=result.primary_metric if result and split else None,
        split=split,
        value=values[split] if split else None,
        started_at=latest.started_at if latest else None,
        seconds=latest.seconds.total if latest else None,
        attempts=len(record.attempts),
        reason=f"attempt {latest.attempt} {record.state}" if latest and repeated else failure(record),
        folder=str(record.folder),
        progress=None if far is None else vars(far),
    )

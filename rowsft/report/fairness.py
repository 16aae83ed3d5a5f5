"""The fairness contract of a table: each condition held against the records, and said to be met, not met or unknown."""

import json
from dataclasses import dataclass

from rowsft.report.predictions import Scored
from rowsft.report.rows import (
    LEARNING_RATE,
    WATCHING,
    Row,
    Table,
    best_on_validation,
    differing,
    dig,
    family_of,
    named,
    settings_of,
)
from rowsft.store import Record

MET, NOT_MET, STATED, UNKNOWN = "met", "not met", "stated", "not recorded"

BUDGET_TOLERANCE = 0.01
SEEDS_NEEDED = 3
#: These have no budget to share: nothing, the head alone, or everything is trained.
UNBUDGETED = ("none", "head", "full")


@dataclass(frozen=True)
class Condition:
    """One line of the contract."""

    key: str
    text: str
    status: str
    detail: str


def contract(table: Table, store_records: list[Record]) -> list[Condition]:
    """The contract of a table. `store_records` are all of the store's: a tuning grid may be an experiment of its own.

    What the records cannot tell is `not recorded`, unless the experiment's `fairness: {<key>: <text>}` states it.
    """
    rows = [row for row in table.rows if row.trains and row.done]
    adapters = [row for row in rows if row.method not in UNBUDGETED]
    checks = [
        ("base_weights", "same base weights", _same(rows, settings=_BASE, facts=_base_facts)),
        ("data_order", "same data in the same order", _data_order(rows)),
        ("target_modules", "same target modules", _same(adapters, leaves=_TARGETS, ending=_ONLY_ADAPTERS)),
        ("budget", "same trainable-parameter budget, met within 1 %", _budget(adapters)),
        ("dropout", "same dropout", _same(adapters, leaves=("dropout", "lora_dropout"), ending=_ONLY_ADAPTERS)),
        ("adapter_dtype", "same dtype of adapter and base, same autocast", _dtype(rows)),
        (
            "optimizer",
            "same optimizer family and schedule",
            _same(rows, settings=_OPTIMIZER, ending="AdamW throughout"),
        ),
        ("steps", "same number of optimizer steps", _same(rows, facts=lambda result: result.get("steps"))),
        ("label_masking", "same label masking", _same(rows, settings=("task",), ending="the task does it")),
        ("evaluation", "same evaluation on the same examples", _evaluation(rows)),
        ("learning_rate", "learning rate tuned per method over one grid on validation", _tuning(table, store_records)),
        ("seeds", f"at least {SEEDS_NEEDED} seeds each", _seeds(rows)),
        ("machine", "same machine, threads, packages and clean commit, one job at a time", _machine(rows)),
    ]
    stated = table.notes.get("fairness") or {}
    stated = stated if isinstance(stated, dict) else {}
    return [_condition(key, text, *found, stated.get(key)) for key, text, found in checks]


def remarks(table: Table) -> list[str]:
    """What the experiment itself adds about fairness, beyond the contract's own lines."""
    notes = table.notes.get("fairness") or []
    return [str(note) for note in notes] if isinstance(notes, list) else []


_BASE = ("model.source", "model.revision", "model.dtype", "revisions.model")
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform")
_ORDER = ("task", "revisions.data", "trainer.batch_size", "trainer.gradient_accumulation", "trainer.epochs")
_ONLY_ADAPTERS = "among the adapter methods"
_OPTIMIZER = tuple(
    f"trainer.{name}" for name in ("weight_decay", "max_grad_norm", "scheduler", "scheduler_gamma", "warmup_ratio")
)


def _condition(key: str, text: str, status: str, detail: str, stated: str | None) -> Condition:
    if stated and status != MET:
        return Condition(key, text, STATED if status == UNKNOWN else status, "; ".join(filter(None, [detail, stated])))
    return Condition(key, text, status, detail)


def _same(rows: list[Row], settings=(), leaves=(), facts=None, ending: str = "") -> tuple[str, str]:
    """Met when settings under these keys, settings with these last names, and facts of the results all agree."""
    if not rows:
        return UNKNOWN, "no finished run"
    unequal = [
        key
        for key in differing(rows)
        if key not in WATCHING
        and (any(key == name or key.startswith(name + ".") for name in settings) or key.rsplit(".", 1)[-1] in leaves)
    ]
    if unequal:
        return NOT_MET, "differs in " + ", ".join(unequal)
    if leaves and not any(key.rsplit(".", 1)[-1] in leaves for row in rows for key in row.settings):
        return UNKNOWN, ""
    if facts is not None:
        seen = {json.dumps(facts(result), sort_keys=True) for row in rows for result in row.results}
        if "null" in seen:
            return UNKNOWN, ""
        if len(seen) > 1:
            return NOT_MET, f"{len(seen)} different values: {', '.join(sorted(seen)[:4])}"
    return MET, ending


def _base_facts(result: dict) -> list:
    return [dig(result, "model_facts", key) for key in ("sha256", "revision", "parameters")]


def _data_order(rows: list[Row]) -> tuple[str, str]:
    status, detail = _same(rows, settings=_ORDER)
    seeds = {row.method: sorted(str(record.config.get("seed")) for record in row.done) for row in rows}
    if status == MET and len({tuple(found) for found in seeds.values()}) > 1:
        return NOT_MET, "seeds differ: " + "; ".join(f"{method} {', '.join(found)}" for method, found in seeds.items())
    return status, detail or "the order depends on the seed alone"


def _budget(adapters: list[Row]) -> tuple[str, str]:
    known = [
        (row, dig(result, "parameters", "budget_asked"), dig(result, "parameters", "budget_achieved"))
        for row in adapters
        for result in row.results
    ]
    if not known or any(not asked or achieved is None for _, asked, achieved in known):
        return UNKNOWN, "" if known else "no adapter method finished"
    asked = sorted({asked for _, asked, _ in known})
    if len(asked) > 1:
        return NOT_MET, "asked for " + ", ".join(f"{number:,}" for number in asked)
    row, worst = max(((row, got / want - 1) for row, want, got in known), key=lambda pair: abs(pair[1]))
    status = MET if abs(worst) <= BUDGET_TOLERANCE else NOT_MET
    return status, f"largest deviation {100 * worst:+.2f} % ({row.title}); {_ONLY_ADAPTERS}"


def _dtype(rows: list[Row]) -> tuple[str, str]:
    status, detail = _same(rows, settings=("model.dtype", "trainer.autocast"), leaves=("adapter_dtype",))
    if status == NOT_MET:
        return status, detail
    seen = {str(dig(result, "parameters", "adapter_dtype")) for row in rows for result in row.results}
    if seen == {"None"} or not seen:
        return UNKNOWN, "the base's dtype and autocast are the same" if status == MET else ""
    return (MET, ", ".join(seen)) if len(seen) == 1 else (NOT_MET, "adapters in " + ", ".join(sorted(seen)))


def _evaluation(rows: list[Row]) -> tuple[str, str]:
    status, detail = _same(rows, settings=("task", "revisions.data"))
    if status != MET:
        return status, detail
    scores: list[Scored | None] = [
        row.scores.get(record.config.get("seed")) for row in rows for record in row.done if row.metric_values(row.split)
    ]
    if any(found is None for found in scores):
        return UNKNOWN, "no per-example predictions that give back the recorded metric"
    if len({found.ids for found in scores}) > 1:
        return NOT_MET, "the runs scored different examples"
    return MET, f"{len(scores[0].ids):,} {rows[0].split} examples"


def _tuning(table: Table, store_records: list[Record]) -> tuple[str, str]:
    """Met when every row's rate is the best on validation of a grid in the store, the same grid for each method."""
    rows = [row for row in table.rows if row.trains and row.done]
    grids, unbest = {}, []
    for row in rows:
        pool: dict[float, Row] = {}
        for record in store_records:
            other = Row(row.method, settings_of(record), table.split)
            if record.result and named(record.config, "method") == row.method and family_of(other) == family_of(row):
                pool.setdefault(other.settings.get(LEARNING_RATE), other).done.append(record)
        grids[row.title] = sorted(pool)
        best = best_on_validation(list(pool.values()), table.higher_is_better)
        if best is None or best.settings.get(LEARNING_RATE) != row.learning_rate:
            unbest.append(row.title)
    sizes = {tuple(grid) for grid in grids.values()}
    if not rows:
        return UNKNOWN, "no finished run"
    if all(len(grid) < 2 for grid in sizes):
        return UNKNOWN, "the store holds no grid of learning rates for these settings"
    if len(sizes) > 1:
        return NOT_MET, "rates tried: " + "; ".join(f"{name} {_rates(grid)}" for name, grid in grids.items())
    if unbest:
        return NOT_MET, f"not the best rate on validation: {', '.join(unbest)}"
    return MET, f"grid {_rates(next(iter(sizes)))}"


def _rates(grid) -> str:
    return ", ".join(f"{rate:g}" for rate in grid)


def _seeds(rows: list[Row]) -> tuple[str, str]:
    if not rows:
        return UNKNOWN, "no finished run"
    fewest = min(len(row.done) for row in rows)
    return (MET if fewest >= SEEDS_NEEDED else NOT_MET), f"the least is {fewest}"


def _machine(rows: list[Row]) -> tuple[str, str]:
    environments = [result.get("environment") or {} for row in rows for result in row.results]
    if not environments or any(not found.get("hardware") for found in environments):
        return UNKNOWN, ""
    parts = ("hardware", "threads", "packages", "git_commit")
    unequal = [part for part in parts if len({json.dumps(e.get(part), sort_keys=True) for e in environments}) > 1]
    if unequal:
        return NOT_MET, "differs in " + ", ".join(unequal)
    at_once = max((result.get("concurrent_jobs") or 1) for row in rows for result in row.results)
    if at_once > 1:
        return NOT_MET, f"{at_once} jobs ran side by side, so their times are not comparable"
    if any(found.get("git_dirty") for found in environments):
        return NOT_MET, "the commit had local changes"
    if any(found.get("git_commit") is None for found in environments):
        return UNKNOWN, "the code was no git checkout"
    return MET, ""

"""The fairness contract of a table: each condition held against the records, and said to be met, not met or unknown.

Where a setting was swept, rows are judged among those of its value: each budget for itself.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rowsft.record import Attempt, plain
from rowsft.report.apart import against, apart, asked
from rowsft.report.grids import MET, NOT_MET, UNKNOWN, Grids, few
from rowsft.report.rows import Row, Table
from rowsft.report.settings import WATCHING, differing, under
from rowsft.report.stepping import judged
from rowsft.report.sweeps import Sweep
from rowsft.report.tuned import Tuned
from rowsft.report.tuned_alike import in_short, shortcomings
from rowsft.selection.budget_met import TOLERANCE

STATED = "stated"

SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Condition:
    """One line of the contract."""

    key: str
    text: str
    status: str
    detail: str


class Group:
    """The finished rows of one value of what was swept."""

    def __init__(self, rows: list[Row]):
        self.rows = rows
        self.adapters = [row for row in rows if row.info.budgeted]
        #: Whose size no budget sets.
        self.apart = apart(rows)

    @cached_property
    def unequal(self) -> list[str]:
        """The settings that the rows do not share."""
        return [key for key in differing(row.settings for row in self.rows) if key not in WATCHING]

    @cached_property
    def unequal_adapters(self) -> list[str]:
        """The settings that the rows of adapter methods do not share; a method without a setting does not share it."""
        return differing((row.settings for row in self.adapters), absent=True)


def contract(table: Table, grids: Grids, tuned: Mapping[int, Tuned]) -> list[Condition]:
    """Return the contract of a table. `grids` are the whole store's: a tuning grid may be an experiment of its own.

    tuned: {id(row): how the sweep's tuning stage chose its rate}.

    What the records cannot tell is `not recorded`, unless the experiment's `fairness: {<key>: <text>}` states it.
    """
    rows = [row for row in table.rows if row.trains and row.done]
    groups = {label: Group(members) for label, members in Sweep(rows).groups.items()} or {"": Group([])}
    stated = table.notes.get("fairness") or {}
    stated = stated if isinstance(stated, dict) else {}
    judged = _tuned(rows, tuned) if tuned else None
    untrained = [row for row in table.rows if row.done and not row.trains]
    conditions = []
    for key, text, check in _checks(grids, judged, table.higher_is_better, untrained):
        status, detail = _together({label: check(group) for label, group in groups.items()})
        conditions.append(_condition(key, text, status, detail, _text(stated.get(key))))
    return conditions


def _checks(
    grids: Grids, tuned: tuple[str, str] | None, higher_is_better: bool, untrained: list[Row]
) -> list[tuple[str, str, Callable[[Group], tuple[str, str]]]]:
    return [
        ("base_weights", "same base weights", lambda g: _same(g, settings=_BASE, facts=_base_facts)),
        ("data_order", "same data in the same order", _data_order),
        ("target_modules", "same target modules", lambda g: _same_adapters(g, _TARGETS)),
        ("budget", f"same trainable-parameter budget, met within {100 * TOLERANCE:g} %", _budget),
        ("dropout", "same dropout", lambda g: _same_adapters(g, ("dropout", "lora_dropout"))),
        ("adapter_dtype", "same dtype of adapter and base, same autocast", _dtype),
        (
            "optimizer",
            "same optimizer family and schedule",
            _optimizer,
        ),
        ("steps", "same number of optimizer steps", _steps),
        ("label_masking", "same label masking", lambda g: _same(g, settings=("task",), ending="the task does it")),
        ("evaluation", "same evaluation on the same examples", lambda g: _evaluation(g, untrained)),
        (
            "learning_rate",
            "learning rate tuned per method over one grid on validation",
            lambda g: tuned or grids.judge(g.rows, higher_is_better),
        ),
        ("seeds", f"at least {SEEDS_NEEDED} seeds each", _seeds),
        ("machine", "same machine, threads, packages and clean commit, one job at a time", _machine),
    ]


def _together(findings: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Return the worst of the groups' findings, with the groups that it holds for."""
    status = next(one for one in (NOT_MET, UNKNOWN, MET) if one in {status for status, _ in findings.values()})
    details = {label: detail for label, (own, detail) in findings.items() if own == status}
    if len(set(details.values())) > 1:
        return status, few([f"{label}: {detail}" if detail else label for label, detail in details.items()], most=4)
    detail = next(iter(details.values()))
    if len(details) == len(findings):
        return status, detail
    return status, f"{few(list(details), ' / ', most=4)}{': ' if detail else ''}{detail}"


def remarks(table: Table) -> list[str]:
    """Return what the experiment itself adds about fairness, beyond the contract's own lines."""
    notes = table.notes.get("fairness") or []
    return [str(note) for note in notes] if isinstance(notes, list) else []


# That the source is the same is a condition of standing in one table: groups.py.
_BASE = ("model.dtype",)
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform")
_ORDER = ("task", "revisions.data", "trainer.batch_size", "trainer.gradient_accumulation", "trainer.epochs")
_ONLY_ADAPTERS = "among the adapter methods"
_OPTIMIZER = tuple(
    f"trainer.{name}" for name in ("weight_decay", "max_grad_norm", "scheduler", "scheduler_gamma", "warmup_ratio")
)


def _text(stated: object) -> str:
    """Return what an experiment states of a condition; `key: true` in its YAML is not text."""
    return str(stated) if stated else ""


def _condition(key: str, text: str, status: str, detail: str, stated: str) -> Condition:
    if stated and status != MET:
        return Condition(key, text, STATED if status == UNKNOWN else status, "; ".join(filter(None, [detail, stated])))
    return Condition(key, text, status, detail)


def _same(group: Group, settings=(), facts=None, ending: str = "") -> tuple[str, str]:
    """Judge it met when the settings under these keys and facts of the results agree in all rows."""
    if not group.rows:
        return UNKNOWN, "no finished run"
    unequal = [key for key in group.unequal if under(key, settings)]
    if unequal:
        return NOT_MET, "differs in " + ", ".join(unequal)
    if facts is not None:
        seen = {json.dumps(facts(result), sort_keys=True) for row in group.rows for result in row.results}
        if "null" in seen:
            return UNKNOWN, ""
        if len(seen) > 1:
            return NOT_MET, f"{len(seen)} different values: {', '.join(sorted(seen)[:4])}"
    return MET, ending


def _steps(group: Group) -> tuple[str, str]:
    """Judge the steps of the runs; that a choice was made by another fine-tuning is said, whose steps are in none."""
    status, detail = _same(group, facts=lambda result: result.steps)
    chosen = [row.title for row in group.rows if row.settings.get("method.changed") is not None]
    before = f"{few(chosen)} chose by a fine-tuning that is not counted here" if chosen else ""
    return status, "; ".join(filter(None, [detail, before]))


def _same_adapters(group: Group, leaves: tuple[str, ...]) -> tuple[str, str]:
    """Judge it met when settings with these last names agree in all rows of adapter methods."""
    if not group.adapters:
        return UNKNOWN, "no finished run"
    # A method of a fixed size shares what it has: VeRA a dropout, BitFit none.
    others = [row for row in group.apart if any(_leaf(key) in leaves for key in row.settings)]
    found = differing((row.settings for row in [*group.adapters, *others]), absent=True) if others else None
    keys = [key for key in (group.unequal_adapters if found is None else found) if _leaf(key) in leaves]
    # A method that cannot drop anything is as one that drops nothing.
    unequal = [key for key in keys if any(row.settings.get(key) for row in [*group.adapters, *others])]
    if unequal:
        return NOT_MET, "differs in " + ", ".join(unequal)
    if not any(_leaf(key) in leaves for row in group.adapters for key in row.settings):
        return UNKNOWN, ""
    return MET, _ONLY_ADAPTERS


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _base_facts(result: Attempt) -> list:
    return [getattr(result.model_facts, key, None) for key in ("sha256", "revision", "parameters")]


def _optimizer(group: Group) -> tuple[str, str]:
    status, detail = _same(group, settings=_OPTIMIZER)
    return judged(group.rows) if status == MET else (status, detail)


def _data_order(group: Group) -> tuple[str, str]:
    status, detail = _same(group, settings=_ORDER)
    seeds = {row.title: sorted(str(record.config.get("seed")) for record in row.done) for row in group.rows}
    if status == MET and len({tuple(own) for own in seeds.values()}) > 1:
        return NOT_MET, "seeds differ: " + few([f"{title} {', '.join(own)}" for title, own in seeds.items()])
    return status, detail or "the order depends on the seed alone"


def _budget(group: Group) -> tuple[str, str]:
    status, detail = _budget_of_adapters(group)
    if group.apart:
        budgets = asked(group.adapters)
        beside = against(group.apart, budgets[0] if len(budgets) == 1 else None)
        detail = "; ".join(filter(None, [detail, f"not judged, since the method fixes its size: {beside}"]))
    return status, detail


def _budget_of_adapters(group: Group) -> tuple[str, str]:
    results = [(row, result.parameters) for row in group.adapters for result in row.results]
    met = [
        (row, sizes.budget_asked, sizes.budget_achieved)
        for row, sizes in results
        if sizes.budget_asked and sizes.budget_achieved is not None
    ]
    if not results or len(met) < len(results):
        return UNKNOWN, "" if results else "no adapter method finished"
    wanted = sorted({want for _, want, _ in met})
    if len(wanted) > 1:
        return NOT_MET, "asked for " + few([f"{number:,}" for number in wanted], ", ")
    row, worst = max(((row, got / want - 1) for row, want, got in met), key=lambda pair: abs(pair[1]))
    status = MET if abs(worst) <= TOLERANCE else NOT_MET
    return status, f"largest deviation {100 * worst:+.2f} % ({row.title}); {_ONLY_ADAPTERS}"


def _dtype(group: Group) -> tuple[str, str]:
    status, detail = _same(group, settings=("model.dtype", "trainer.autocast"))
    unequal = [key for key in group.unequal if _leaf(key) == "adapter_dtype"]
    if status == NOT_MET or unequal:
        return NOT_MET, detail if status == NOT_MET else "differs in " + ", ".join(unequal)
    seen = {str(result.parameters.adapter_dtype) for row in group.rows for result in row.results}
    if seen == {"None"} or not seen:
        return UNKNOWN, "the base's dtype and autocast are the same" if status == MET else ""
    return (MET, ", ".join(seen)) if len(seen) == 1 else (NOT_MET, "adapters in " + ", ".join(sorted(seen)))


def _tuned(rows: list[Row], tuned: Mapping[int, Tuned]) -> tuple[str, str]:
    """Judge it met when the sweep's tuning stage chose every rate, over one grid that a comparison may rest on."""
    rows = [row for row in rows if row.learning_rate is not None]
    lacking = shortcomings(rows, tuned)
    return (NOT_MET, few(lacking)) if lacking else (MET, in_short(rows, tuned))


def _evaluation(group: Group, untrained: list[Row]) -> tuple[str, str]:
    rows = group.rows
    status, detail = _same(group, settings=("task", "revisions.data"))
    if status != MET:
        return status, detail
    judged = [(row, record) for row in rows for record in row.done if row.metric_values(row.split)]
    read = [row.scores.get(record.config.get("seed")) for row, record in judged]
    scores = [one for one in read if one is not None]
    if not scores or len(scores) < len(judged):
        return UNKNOWN, "no per-example predictions that give back the recorded metric"
    if len({one.ids for one in scores}) > 1:
        return NOT_MET, "the runs scored different examples"
    beside = [one.ids for row in untrained for one in row.scores.values()]
    if beside and scores[0].ids not in beside:
        return NOT_MET, "the model without training scored other examples than the trained ones"
    return MET, f"{len(scores[0].ids):,} {rows[0].split} examples"


def _seeds(group: Group) -> tuple[str, str]:
    if not group.rows:
        return UNKNOWN, "no finished run"
    fewest = min(len(row.done) for row in group.rows)
    return (MET if fewest >= SEEDS_NEEDED else NOT_MET), f"the least is {fewest}"


def _machine(group: Group) -> tuple[str, str]:
    rows = group.rows
    results = [result for row in rows for result in row.results]
    # What was measured again alone was measured in another process, maybe elsewhere.
    alone = [result.alone.environment for result in results if result.alone.measured_at]
    environments = [*(result.environment for result in results), *alone]
    if not environments or any(not found.hardware for found in environments):
        return UNKNOWN, ""
    parts = ("hardware", "threads", "packages", "git_commit")
    texts = {part: {json.dumps(plain(getattr(e, part)), sort_keys=True) for e in environments} for part in parts}
    unequal = [part for part in parts if len(texts[part]) > 1]
    if unequal:
        return NOT_MET, "differs in " + ", ".join(unequal)
    at_once = max((result.concurrent_jobs or 1) for result in results)
    if at_once > 1:
        return NOT_MET, f"{at_once} jobs ran side by side, so their times are not comparable"
    if any(found.git_dirty for found in environments):
        return NOT_MET, "the commit had local changes"
    if any(found.git_commit is None for found in environments):
        return UNKNOWN, "the code was no git checkout"
    return MET, f"step times and memory of {len(alone)} runs were measured again alone" if alone else ""

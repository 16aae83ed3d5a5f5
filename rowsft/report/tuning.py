"""The outcome of a learning-rate grid: every score on the validation split, and the best rate of each setting."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.output import escape
from rowsft.rates import FAILED, best
from rowsft.report.rows import natural
from rowsft.report.settings import (
    LEARNING_RATE,
    WATCHING,
    determining,
    method_info,
    primary,
    text_of,
    without_seeds,
)
from rowsft.report.sweeps import variants
from rowsft.store import Record, Store

log = logging.getLogger(__name__)


@dataclass
class Setting:
    """A method with all that was asked but the rate: {learning rate: scores of its seeds}, larger is better."""

    info: MethodInfo
    settings: dict[str, object]
    scores: dict[float, list[float]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.info.name

    @property
    def means(self) -> dict[float, float]:
        """{learning rate: mean score}."""
        return {rate: fmean(scores) for rate, scores in sorted(self.scores.items())}

    @property
    def best(self) -> float | None:
        """The rate with the best mean score; of equal ones the lowest; None where every rate failed."""
        return best(self.means)


def best_learning_rates(root: Path, experiment: str) -> str:
    """Return validation scores by setting and learning rate, then the `tuned:` block for an experiment's YAML.

    Seeds are averaged; a run that failed counts as the worst; of equal rates the lower one is taken. A method whose
    settings (budgets, say) prefer different rates gets no line in the block, but one of its rates by setting. Raises
    UserError when the store has no such runs.
    """
    store = Store(root)
    records = store.runs(experiment)
    if not records:
        known = ", ".join(store.experiments()) or "none"
        raise UserError(f"experiment {experiment!r}: no runs in store {root}; it has: {known}")
    settings, metric = _settings(records, experiment)
    names = variants(settings)
    settings.sort(key=lambda one: (one.info.place, natural(names[id(one)])))
    names = {key: escape.terminal(name) for key, name in names.items()}
    shown = {one.method: escape.terminal(one.method) for one in settings}
    titles = {id(one): shown[one.method] + (f" ({names[id(one)]})" if names[id(one)] else "") for one in settings}
    rates = sorted({rate for one in settings for rate in one.scores})
    seconds = sum(record.latest.seconds.total or 0 for record in records if record.latest)
    width = max([10, *(len(title) + 1 for title in titles.values())])
    lines = [
        f"validation {escape.terminal(metric)} by learning rate "
        f"({len(records)} runs, {seconds / 60:.0f} minutes of computing)",
        f"{'method':<{width}}" + "".join(f"{rate:>10g}" for rate in rates),
    ]
    for one in settings:
        lines.append(f"{titles[id(one)]:<{width}}" + "".join(_cell(one.means.get(rate)) for rate in rates))
    lines += ["", "tuned:", "  learning_rate:"]
    for method in dict.fromkeys(one.method for one in settings):
        mine = [one for one in settings if one.method == method]
        chosen = {one.best for one in mine}
        if chosen == {None}:
            lines.append(f"    # {shown[method]}: failed at every rate")
        elif len(chosen) == 1:
            lines.append(f"    {_key(method)}: {chosen.pop():g}")
        else:
            each = ", ".join(f"{'none' if one.best is None else f'{one.best:g}'} at {names[id(one)]}" for one in mine)
            lines.append(f"    # {shown[method]}: no one rate is the best: {each}")
    return "\n".join(lines)


def _settings(records: list[Record], experiment: str) -> tuple[list[Setting], str]:
    """Return what was tried at every rate, and the metric's name."""
    settings_by_key: dict[tuple[str, str], Setting] = {}
    metric = "score"
    lacking = []
    for record in records:
        settings = without_seeds(determining(record))
        rate = settings.pop(LEARNING_RATE, None)
        result = record.result
        if record.state in ("pending", "running") and result is None or not isinstance(rate, int | float):
            continue
        info, kept = method_info(record), {key: value for key, value in settings.items() if key not in WATCHING}
        score = validation_score(record)
        if score is None:
            lacking.append(
                f"run {record.id} has no validation score; rates are tuned on grids run with "
                "trainer.evaluate=[validation]"
            )
            continue
        if result is not None:
            metric = result.primary_metric or metric
        one = settings_by_key.setdefault((info.name, text_of(kept)), Setting(info, kept))
        one.scores.setdefault(float(rate), []).append(score)
    if lacking and not settings_by_key:
        raise UserError(lacking[-1])
    if not settings_by_key:
        raise UserError(f"experiment {experiment!r}: none of its runs has ended; tune when the sweep is done")
    for warning in lacking:
        log.warning("%s: left out", warning)
    return list(settings_by_key.values()), metric


def validation_score(record: Record) -> float | None:
    """Return a run's primary metric on validation, its sign turned where lower is better.

    FAILED for a run without a result and for a metric that is no number; None where validation was not evaluated.
    """
    result = record.result
    if result is None:
        return FAILED
    score = primary(result, "validation")
    if score is None:
        return FAILED if result.primary_metric in (result.metrics.get("validation") or {}) else None
    return score if result.higher_is_better else -score


def says_something(record: Record) -> bool:
    """Return whether a run tells of its rate: it is done or it failed. One that was stopped does not."""
    return record.result is not None or record.state in ("failed", "oom")


def _key(name: str) -> str:
    """Return a method's name as YAML has it."""
    return name if name.isidentifier() else json.dumps(name)


def _cell(score: float | None) -> str:
    return f"{'-' if score is None else 'failed' if score == FAILED else f'{score:.4f}':>10}"

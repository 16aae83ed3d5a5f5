"""The outcome of a learning-rate grid: every score on the validation split, and the best rate of each method."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from rowsft.errors import UserError
from rowsft.store import Record, Store

DIVERGED = float("-inf")


def best_learning_rates(root: Path, experiment: str) -> str:
    """A text table of validation scores by method and learning rate, then the `tuned:` block for an experiment's YAML.

    Seeds are averaged; a run that failed counts as the worst; of equal rates the lower one is taken. Raises UserError
    when the store has no such runs.
    """
    store = Store(root)
    records = store.runs(experiment)
    if not records:
        known = ", ".join(store.experiments()) or "none"
        raise UserError(f"experiment {experiment!r}: no runs in store {root}; it has: {known}")
    table, metric = _table(records)
    rates = sorted({rate for row in table.values() for rate in row})
    seconds = sum((record.latest or {}).get("seconds", {}).get("total") or 0 for record in records)
    lines = [
        f"validation {metric} by learning rate ({len(records)} runs, {seconds / 60:.0f} minutes of computing)",
        f"{'method':<10}" + "".join(f"{rate:>10g}" for rate in rates),
    ]
    for method, row in table.items():
        lines.append(f"{method:<10}" + "".join(_cell(row.get(rate)) for rate in rates))
    lines += ["", "tuned:", "  learning_rate:"]
    lines += [f"    {method}: {max(row, key=lambda rate: (row[rate], -rate)):g}" for method, row in table.items()]
    return "\n".join(lines)


def _table(records: list[Record]) -> tuple[dict[str, dict[float, float]], str]:
    """{method: {learning rate: mean score over seeds}}, larger is better, and the metric's name."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    metric = "score"
    for record in records:
        method, rate = record.config["method"]["name"], float(record.config["trainer"]["learning_rate"])
        result = record.result
        if record.state in ("pending", "running"):
            continue
        if result is None:
            scores[method][rate].append(DIVERGED)
            continue
        metric = result["primary_metric"]
        if "validation" not in result["metrics"]:
            raise UserError(
                f"run {record.id} has no validation score; rates are tuned on grids run with "
                "trainer.evaluate=[validation]"
            )
        sign = 1 if result.get("higher_is_better", True) else -1
        scores[method][rate].append(sign * result["metrics"]["validation"][metric])
    return {method: {rate: fmean(seen) for rate, seen in row.items()} for method, row in scores.items()}, metric


def _cell(score: float | None) -> str:
    return f"{'-' if score is None else 'failed' if score == DIVERGED else f'{score:.4f}':>10}"

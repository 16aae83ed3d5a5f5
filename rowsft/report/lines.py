"""A table's rows as numbers: one flat dict a row, units in the names, None for what was not measured."""

from collections.abc import Callable
from statistics import fmean, median

from rowsft.report.clocks import clock_numbers, median_of
from rowsft.report.predictions import Difference, difference
from rowsft.report.rows import Row, Table
from rowsft.report.settings import differing, dig, failure, plain, short_names

#: Every other row is held against these, on the same test examples and in cost.
REFERENCES = ("lora", "full")


def lines(table: Table, step: Callable[[], None] = lambda: None) -> list[dict]:
    """One dict for each shown row that has a finished run; `step` is called after each.

    Metrics are means over seeds, costs medians over seeds (bytes, seconds). `*_to_lora` are ratios to the row's LoRA,
    `minus_lora` and `minus_full` paired differences of the primary metric to its LoRA and its full fine-tuning, whose
    titles are under `lora_reference` and `full_reference` (references.py says which those are).
    """
    finished = [row for row in table.rows if row.done]
    differs = differs_in(finished)
    numbers = {}
    for row in finished:
        # The slow part: predictions are read here.
        numbers[id(row)] = _numbers(table, row) | {"differs_in": differs[id(row)]}
        step()
    for row in finished:
        line = numbers[id(row)]
        found = {method: table.references.of(row, method).row for method in REFERENCES}
        lora = numbers[id(found["lora"])] if found["lora"] is not None else {}
        line["train_peak_to_lora"] = _ratio(line["train_peak_allocated_bytes"], lora.get("train_peak_allocated_bytes"))
        line["step_to_lora"] = _ratio(line["step_median_seconds"], lora.get("step_median_seconds"))
        for method, reference in found.items():
            line |= _difference_fields(f"minus_{method}", paired(row, reference))
            line[f"{method}_reference"] = reference.title if reference is not None else None
    return list(numbers.values())


def paired(row: Row, reference: Row | None) -> Difference | None:
    """The row against its reference, on the same examples; None without one, or where the row is its own."""
    return difference(row.scores, reference.scores) if reference is not None and reference is not row else None


#: Settings of methods that trade memory for time, and so belong to the conditions of a comparison.
TRADES = ("method.recompute_inputs",)


def differs_in(rows: list[Row]) -> dict[int, str]:
    """{id(row): the row's own values of every setting that the trained rows do not share}.

    A method's own settings are left out, but for those in TRADES, and so is what a method does not have.
    """
    trained = [row for row in rows if row.trains]
    differ = differing(row.settings for row in trained)
    keys = [key for key in differ if key in TRADES or key.split(".")[0] != "method"]
    names = short_names(keys)
    return {
        id(row): ", ".join(f"{names[key]}={plain(row.settings[key])}" for key in keys if key in row.settings)
        if row.trains
        else ""
        for row in rows
    }


def unfinished(table: Table) -> list[dict]:
    """One dict for each run without a result: method, seed, state, phase and the first line of the reason."""
    found = []
    for row in table.rows:
        for record in row.unfinished:
            found.append(
                {
                    "title": row.title,
                    "method": row.method,
                    "seed": record.config.get("seed"),
                    "state": record.state,
                    "phase": dig(record.latest, "error", "phase"),
                    "reason": failure(record) or "",
                    "run": record.id,
                }
            )
    return found


def references(table: Table) -> dict[str, float]:
    """Metrics that need no training at all (an embedding's cosine, say), as the runs recorded them, seeds averaged."""
    found: dict[str, list[float]] = {}
    for row in table.rows:
        for result in row.results:
            for name, value in (result.get("reference") or {}).items():
                if isinstance(value, int | float):
                    found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def grid_lines(table: Table) -> list[dict]:
    """The learning-rate grid: one dict a rate that was tried, with its validation metric and what it cost."""
    shown = {id(row) for row in table.rows}
    return [
        {
            "title": row.title,
            "method": row.method,
            "learning_rate": row.learning_rate,
            "validation": fmean(row.metric_values("validation")) if row.metric_values("validation") else None,
            "seeds": len(row.done),
            "unfinished": len(row.unfinished),
            "seconds": sum(row.values("seconds", "total")),
            "chosen": id(row) in shown,
        }
        for family in table.grid
        for row in family
    ]


def memory_kinds(table: Table) -> list[str]:
    """How the memory of the shown rows was measured."""
    kinds = {
        (result.get("memory") or {}).get("kind") or ((result.get("memory") or {}).get("train") or {}).get("kind")
        for row in table.rows
        for result in row.results
        if row.trains
    }
    return sorted(kind for kind in kinds if kind)


def _numbers(table: Table, row: Row) -> dict:
    estimate = row.estimate
    asked, achieved = _first(row, "parameters", "budget_asked"), _first(row, "parameters", "budget_achieved")
    return {
        "experiment": table.experiment,
        "task": table.task,
        "model": table.model,
        "method": row.method,
        "title": row.title,
        "seeds": len(row.done),
        "runs": " ".join(record.id for record in row.done),
        "adapter_parameters": _first(row, "parameters", "adapter"),
        "head_parameters": _first(row, "parameters", "head"),
        "base_parameters": _first(row, "parameters", "base"),
        "budget_asked": asked,
        "budget_achieved": achieved,
        "budget_off_percent": 100 * (achieved / asked - 1) if asked and achieved is not None else None,
        "metric": table.metric,
        "split": table.split,
        "value": estimate.value if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "interval": estimate.covers if estimate else None,
        "interval_cut": estimate.cut if estimate else None,
        "train_peak_allocated_bytes": median_of(row, "memory", "train", "peak_allocated_bytes"),
        "train_step_peak_new_bytes": median_of(row, "memory", "train", "step_peak_new_bytes"),
        "select_peak_allocated_bytes": median_of(row, "memory", "select", "peak_allocated_bytes"),
        "train_peak_reserved_bytes": median_of(row, "memory", "train", "peak_reserved_bytes"),
        "train_process_peak_bytes": median_of(row, "memory", "train", "process_peak_bytes"),
        "train_resident_peak_bytes": median_of(row, "memory", "train", "resident_peak_bytes"),
        "step_median_seconds": median_of(row, "step_seconds", "median"),
        "step_p95_seconds": median_of(row, "step_seconds", "p95"),
        "tokens_per_second": median_of(row, "tokens_per_second"),
        "select_seconds": _scored_seconds(row),
        **clock_numbers(row),
        "learning_rate": row.learning_rate,
        **_other_metrics(row),
    }


def _other_metrics(row: Row) -> dict[str, float]:
    names = {
        (split, name)
        for result in row.results
        for split, metrics in (result.get("metrics") or {}).items()
        for name, value in (metrics or {}).items()
        if isinstance(value, int | float)
    }
    return {f"{split}_{name}": fmean(row.values("metrics", split, name)) for split, name in sorted(names)}


def _difference_fields(prefix: str, found: Difference | None) -> dict:
    names = ("value", "low", "high", "seeds", "examples")
    return {f"{prefix}_{name}" if name != "value" else prefix: getattr(found, name, None) for name in names}


def _first(row: Row, *path: str):
    return next(iter(row.values(*path)), None)


def _scored_seconds(row: Row) -> float | None:
    """Median seconds of selection over the runs that scored: reading kept scores would hide what scoring costs."""
    scored = [result for result in row.results if not result.get("scores_from_cache")]
    seconds = [found for result in scored if (found := dig(result, "seconds", "select")) is not None]
    return median(seconds) if seconds else None


def _ratio(mine: float | None, reference: float | None) -> float | None:
    return mine / reference if mine is not None and reference else None

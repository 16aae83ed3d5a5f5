"""The tables of a section and the columns of each: one list for Markdown, the page and the terminal."""

import json
from functools import partial

from rowsft.output.quantities import NONE, count, number
from rowsft.report.apart import FIXED, is_apart
from rowsft.report.budgets import Series
from rowsft.report.columns import Column, Sheet, words
from rowsft.report.harness_tables import harness_differences, harness_main
from rowsft.report.lines import Line, Rate, Unfinished
from rowsft.report.notes import of_the_same
from rowsft.report.other_metrics import other_metrics
from rowsft.report.rows import Table
from rowsft.report.section import Section
from rowsft.report.settings import short
from rowsft.report.tuned import Tuned
from rowsft.report.written import estimated, paired

_METHOD = words("title", "method")


def heading(table: Table) -> str:
    """Return task and model, with the experiment where there is one."""
    return f"{table.task} · {table.model}" + (f" · {table.experiment}" if table.experiment else "")


def main(section: Section) -> Sheet[Line]:
    """Return the main table: what each row was asked for, what it gives (result) and what it costs (cost)."""
    table, same = section.table, of_the_same(section.table)
    columns: list[Column[Line]] = [
        _METHOD,
        Column("adapter_parameters", "trainable parameters", _parameters),
        Column("budget_achieved", "budget asked → achieved", partial(_budget, table)),
        _metric(table),
        Column("seeds", "seeds", "d"),
        *_forgetting(section.lines),
        Column("train_peak_allocated_bytes", "training peak", ",.1f", "MiB", group="cost"),
        Column("train_peak_to_lora", f"× LoRA{same}", ".2f", "×", group="cost"),
        Column("select_peak_allocated_bytes", "selection peak", ",.1f", "MiB", group="cost"),
        Column("step_median_seconds", "step ms median / p95", _median_and_p95, group="cost"),
        Column("step_to_lora", f"× LoRA{same}", ".2f", "×", group="cost"),
        Column("tokens_per_second", "tokens/s", ",.0f", group="cost"),
        Column("select_seconds", "select", ".1f", "s", group="cost"),
        Column("train_seconds", "train", ".1f", "s", group="cost"),
        Column("evaluate_seconds", "evaluate", ".1f", "s", group="cost"),
        Column("learning_rate", "learning rate", "g"),
        Column("differs_in", "differs in", lambda line: line.differs_in or NONE, kind="words"),
    ]
    return Sheet("", columns, section.lines)


def terminal_main(section: Section, lines: list[Line]) -> Sheet[Line]:
    """Return the main table of these lines without what does not fit a terminal."""
    columns: list[Column[Line]] = [
        _METHOD,
        Column("adapter_parameters", "trainable", ",d"),
        Column("budget_off_percent", "off", partial(_off, section.table)),
        _metric(section.table),
        Column("seeds", "n", "d"),
        *_forgetting(lines),
        Column("train_peak_allocated_bytes", "peak", ",.1f", "MiB", group="cost"),
        Column("train_peak_to_lora", "× LoRA", ".2f", "×", group="cost"),
        Column("step_median_seconds", "step", ",.0f", "ms", group="cost"),
        Column("step_to_lora", "× LoRA", ".2f", "×", group="cost"),
        Column("train_seconds", "train", ",.0f", "s", group="cost"),
        Column("learning_rate", "rate", "g"),
    ]
    return Sheet("", columns, lines)


def blocks(section: Section) -> list[Sheet]:
    """Return everything tabular in a section beside the main table; empty ones left out."""
    sheets: list[Sheet] = [
        _unfinished(section),
        by_budget(section),
        _differences(section),
        other_metrics(section.lines, section.table.split),
        harness_main(section, section.lines),
        *harness_differences(section),
        _clocks(section),
        *_overlaps(section),
        _rates(section),
        _tuned(section),
    ]
    return [sheet for sheet in sheets if sheet.items]


def _unfinished(section: Section) -> Sheet[Unfinished]:
    columns: list[Column[Unfinished]] = [
        _METHOD,
        Column("seed", "seed", lambda run: str(run.seed)),
        words("state", "state"),
        Column("phase", "phase", lambda run: run.phase or NONE, kind="words"),
        Column("reason", "reason", lambda run: run.reason or NONE, kind="words"),
        Column("run", "run", lambda run: run.run, kind="name"),
    ]
    return Sheet("Runs without a result", columns, section.unfinished)


def _differences(section: Section) -> Sheet[Line]:
    table = section.table
    columns: list[Column[Line]] = [
        _METHOD,
        Column("minus_lora", f"{table.metric} minus LoRA{of_the_same(table)}", lambda line: paired(line.minus_lora)),
        Column("minus_full", f"{table.metric} minus full fine-tuning", lambda line: paired(line.minus_full)),
        Column("minus_lora_seeds", "seeds shared (LoRA / full)", lambda line: _shared(line, "seeds")),
        Column("minus_lora_examples", "examples (LoRA / full)", lambda line: _shared(line, "examples")),
    ]
    compared = any(line.minus_lora or line.minus_full for line in section.lines)
    return Sheet(
        "Paired differences on the same examples (paired bootstrap, 95 %)", columns, section.lines if compared else []
    )


def _clocks(section: Section) -> Sheet[Line]:
    """Return seconds by phase, the spread of the steps, the wait for data, and energy where a GPU counted it."""
    columns: list[Column[Line]] = [
        _METHOD,
        Column("step_median_seconds", "step ms [p25, p75]", _step_spread),
        Column("data_seconds", "read data", ",.2f"),
        Column("load_seconds", "load model", ",.2f"),
        Column("select_seconds", "select", ",.2f"),
        Column("attach_seconds", "attach", ",.2f"),
        Column("train_seconds", "train", ",.2f"),
        Column("data_wait_seconds", "waiting for data", ",.2f"),
        Column("evaluate_seconds", "evaluate", ",.2f"),
        Column("save_seconds", "save", ",.2f"),
        Column("measure_seconds", "measure", ",.2f"),
        Column("total_seconds", "total", ",.2f"),
    ]
    if any(line.train_joules is not None for line in section.lines):
        columns.append(Column("train_joules", "training energy", ",.2f", "kJ"))
    timed = [line for line in section.lines if line.total_seconds is not None]
    title = "Where the time went (seconds, medians over seeds; waiting for data is part of training)"
    return Sheet(title, columns, timed)


def _rates(section: Section) -> Sheet[Rate]:
    columns: list[Column[Rate]] = [
        _METHOD,
        Column("learning_rate", "learning rate", "g"),
        Column("validation", f"validation {section.table.metric}", ".4f"),
        Column(
            "seeds", "seeds", lambda rate: f"{rate.seeds}" + f" ({rate.unfinished} unfinished)" * bool(rate.unfinished)
        ),
        Column("seconds", "cost", ",.0f", "s"),
        Column("chosen", "chosen", lambda rate: "yes" if rate.chosen else "", kind="words"),
    ]
    return Sheet("Learning-rate grid (chosen on validation)", columns, section.rates)


def _tuned(section: Section) -> Sheet[Tuned]:
    """Return what a sweep's tuning stage did for each row, with its cost and its curve."""
    alphas = any(one.grid.alphas for one in section.tuned.values())
    columns: list[Column[Tuned]] = [
        _METHOD,
        Column("chosen", "learning rate", lambda one: number(one.way.chosen, "g")),
        *([Column("alpha", "alpha", lambda one: one.alphas, kind="words")] if alphas else []),
        Column("spark", "score by rate", lambda one: one.spark, kind="words" if alphas else "name"),
        Column("validation", f"validation {section.table.metric}", ".4f"),
        words("tried", "rates"),
        Column("runs", "runs", lambda one: f"{len(one.runs)}"),
        Column("seconds", "cost", lambda one: number(one.seconds, ",.1f", " min", 1 / 60)),
    ]
    what = "learning rates and alphas" if alphas else "learning rates"
    title = f"How the {what} were chosen (validation, lowest rate first, the chosen one in brackets)"
    return Sheet(title, columns, list(section.tuned.values()))


def by_budget(section: Section, intervals: bool = True) -> Sheet[Series]:
    """Return the primary metric with a row for each line over budgets and a column for each budget."""
    found = section.budgets
    if found is None:
        return Sheet("", [_METHOD], [])
    columns: list[Column[Series]] = [_METHOD, *(_at_budget(size, intervals) for size in found.sizes)]
    title = f"{section.table.split} {section.table.metric} by trainable parameters (the head's left out)"
    return Sheet(title, columns, found.series)


def _at_budget(size: int, intervals: bool) -> Column[Series]:
    def cell(one: Series) -> str:
        return estimated(point.estimate if (point := one.at(size)) is not None else None, 3, intervals)

    return Column("value", count(size), cell)


def _overlaps(section: Section) -> list[Sheet[tuple[str, dict]]]:
    """Return one square table a group of runs that differ in the importance metric alone."""
    sheets = []
    settings = {pair.group: json.loads(pair.group) for pair in section.overlaps}
    for group, kept in settings.items():
        pairs = [pair for pair in section.overlaps if pair.group == group]
        shares = {frozenset((pair.first, pair.second)): pair.share for pair in pairs}
        names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
        differing = {
            key: value for key, value in kept.items() if any(other.get(key) != value for other in settings.values())
        }
        where = ", ".join(f"{short(key)}={value}" for key, value in differing.items())
        title = f"Overlap of the selections{f' at {where}' if where else ''}"
        columns = [Column("importance", "importance", lambda row: row[0], kind="words"), *map(_share_with, names)]
        items = [(one, {other: shares.get(frozenset((one, other))) for other in names}) for one in names]
        ends = "(share of ids in common, mean over seeds; diagonal: between seeds)"
        sheets.append(Sheet(f"{title} {ends}", columns, items))
    return sheets


def _share_with(name: str) -> Column[tuple[str, dict]]:
    return Column(name, name, lambda row: number(row[1][name], ".2f"))


def _metric(table: Table) -> Column[Line]:
    title = f"{table.split} {table.metric}"
    return Column("value", title, metric, "(95 %)", "higher" if table.higher_is_better else "lower")


def _forgetting(lines: list[Line]) -> list[Column[Line]]:
    """The columns of a general text, where a run was asked for it."""
    columns: list[Column[Line]] = [
        Column("forgetting", "forgetting", "+.4f", "nats/token", "lower"),
        Column("csd_rel", "CSD_rel", ".3g"),
    ]
    return columns if any(line.forgetting is not None for line in lines) else []


def metric(line: Line) -> str:
    """Return the primary metric with its interval: ± where it is symmetric, [low, high] where it is not."""
    return estimated(line.estimate)


def _parameters(line: Line) -> str:
    head = f" + {line.head_parameters:,} head" if line.head_parameters else ""
    return NONE if line.adapter_parameters is None else f"{line.adapter_parameters:,}{head}"


def _off(table: Table, line: Line) -> str:
    return "fixed" if _is_apart(table, line) else number(line.budget_off_percent, "+.2f", " %")


def _is_apart(table: Table, line: Line) -> bool:
    sizes = (line.adapter_parameters, line.head_parameters, line.base_parameters)
    return is_apart(table.infos[line.method], *sizes)


def _budget(table: Table, line: Line) -> str:
    if _is_apart(table, line):
        return FIXED
    if line.budget_off_percent is None:
        return NONE
    return f"{line.budget_asked:,} → {line.budget_achieved:,} ({line.budget_off_percent:+.2f} %)"


def _median_and_p95(line: Line) -> str:
    median, p95 = (number(value, ",.0f", scale=1000) for value in (line.step_median_seconds, line.step_p95_seconds))
    return NONE if median == NONE else f"{median} / {p95}"


def _step_spread(line: Line) -> str:
    seconds = (line.step_median_seconds, line.step_p25_seconds, line.step_p75_seconds)
    if None in seconds:
        return NONE
    median, low, high = (number(value, ",.1f", scale=1000) for value in seconds)
    return f"{median} [{low}, {high}]"


def _shared(line: Line, name: str) -> str:
    return " / ".join(number(getattr(pair, name, None), ",d") for pair in (line.minus_lora, line.minus_full))

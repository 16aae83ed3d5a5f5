"""Tables as text: the same cells for Markdown, HTML and the terminal."""

import json

from rowsft.output import escape
from rowsft.report.clocks import clock_block
from rowsft.report.notes import demonstration, notes, of_the_same
from rowsft.report.rows import Table
from rowsft.report.section import Section
from rowsft.report.settings import short
from rowsft.report.statistics import OVER_EXAMPLES

NONE = "–"
_COST_COLUMNS = (
    "training peak MiB",
    "selection peak MiB",
    "step ms median / p95",
    "tokens/s",
    "select s",
    "train s",
    "evaluate s",
)

#: The columns of `terminal_columns` that say what a method costs.
TERMINAL_COSTS = ("peak MiB", "× LoRA", "step ms", "× LoRA ", "train s")


def heading(table: Table) -> str:
    """Task and model, with the experiment where there is one."""
    return f"{table.task} · {table.model}" + (f" · {table.experiment}" if table.experiment else "")


def main_columns(table: Table, line: dict) -> dict[str, str]:
    """One row of the main table: {column title: cell}."""
    arrow = "↑" if table.higher_is_better else "↓"
    same = of_the_same(table)
    return {
        "method": line["title"],
        "trainable parameters": _parameters(line),
        "budget asked → achieved": _budget(line),
        f"{table.split} {table.metric} {arrow} (95 %)": metric(line),
        "seeds": str(line["seeds"]),
        "training peak MiB": _mib(line["train_peak_allocated_bytes"]),
        f"× LoRA{same}": _times(line["train_peak_to_lora"]),
        "selection peak MiB": _mib(line["select_peak_allocated_bytes"]),
        "step ms median / p95": _pair(line),
        f"× LoRA{same} ": _times(line["step_to_lora"]),
        "tokens/s": _number(line["tokens_per_second"], ",.0f"),
        "select s": _number(line["select_seconds"], ".1f"),
        "train s": _number(line["train_seconds"], ".1f"),
        "evaluate s": _number(line["evaluate_seconds"], ".1f"),
        "learning rate": _number(line["learning_rate"], "g"),
        "differs in": line["differs_in"] or NONE,
    }


def terminal_columns(table: Table, line: dict) -> dict[str, str]:
    """The main table without what does not fit a terminal."""
    cells = main_columns(table, line)
    metric_name = next(name for name in cells if table.metric in name)
    return {
        "method": cells["method"],
        "trainable": _number(line["adapter_parameters"], ",d"),
        "off": _number(line["budget_off_percent"], "+.2f", " %"),
        metric_name: cells[metric_name],
        "n": cells["seeds"],
        "peak MiB": cells["training peak MiB"],
        "× LoRA": _times(line["train_peak_to_lora"]),
        "step ms": _number(line["step_median_seconds"], ",.0f", scale=1000),
        "× LoRA ": _times(line["step_to_lora"]),
        "train s": _number(line["train_seconds"], ",.0f"),
        "rate": cells["learning rate"],
    }


def difference_columns(table: Table, line: dict) -> dict[str, str]:
    """One row of the paired differences."""
    return {
        "method": line["title"],
        f"{table.metric} minus LoRA{of_the_same(table)}": _difference(line, "minus_lora"),
        f"{table.metric} minus full fine-tuning": _difference(line, "minus_full"),
        "seeds shared (LoRA / full)": _shared(line, "seeds"),
        "examples (LoRA / full)": _shared(line, "examples"),
    }


def state_columns(entry: dict) -> dict[str, str]:
    """One run that has no result."""
    return {
        "method": entry["title"],
        "seed": str(entry["seed"]),
        "state": entry["state"],
        "phase": entry["phase"] or NONE,
        "reason": entry["reason"] or NONE,
        "run": entry["run"],
    }


def grid_columns(table: Table, line: dict) -> dict[str, str]:
    """One learning rate of the grid."""
    return {
        "method": line["title"],
        "learning rate": _number(line["learning_rate"], "g"),
        f"validation {table.metric}": _number(line["validation"], ".4f"),
        "seeds": str(line["seeds"]) + (f" ({line['unfinished']} unfinished)" if line["unfinished"] else ""),
        "cost s": _number(line["seconds"], ",.0f"),
        "chosen": "yes" if line["chosen"] else "",
    }


def main_rows(section: Section) -> list[dict[str, str]]:
    """The main table: one dict {column title: cell} a row."""
    return [main_columns(section.table, line) for line in section.lines]


def halves(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The main table as two that fit a page: what the methods give, and what they cost."""
    cost = [{name: cell for name, cell in row.items() if name == "method" or _is_cost(name)} for row in rows]
    gain = [{name: cell for name, cell in row.items() if not _is_cost(name)} for row in rows]
    return gain, cost


def _is_cost(column: str) -> bool:
    return column in _COST_COLUMNS or column.startswith("× LoRA")


def blocks(section: Section) -> list[tuple[str, list[dict[str, str]]]]:
    """The (title, rows) of everything tabular in a section beside the main table; empty ones left out."""
    table, numbers = section.table, section.lines
    found = [
        ("Runs without a result", [state_columns(entry) for entry in section.unfinished]),
        (
            "Paired differences on the same examples (paired bootstrap, 95 %)",
            [difference_columns(table, line) for line in numbers] if _has_differences(numbers) else [],
        ),
        *clock_block(numbers),
        *overlap_blocks(section),
        ("Learning-rate grid (chosen on validation)", [grid_columns(table, line) for line in section.grid]),
    ]
    return [(title, rows) for title, rows in found if rows]


def overlap_blocks(section: Section) -> list[tuple[str, list[dict[str, str]]]]:
    """One square table a group of runs that differ in the importance metric alone."""
    found = []
    groups = list(dict.fromkeys(pair["group"] for pair in section.overlaps))
    settings = [json.loads(group) for group in groups]
    for group, kept in zip(groups, settings, strict=True):
        pairs = [pair for pair in section.overlaps if pair["group"] == group]
        shares = {frozenset((pair["first"], pair["second"])): pair["share"] for pair in pairs}
        names = list(dict.fromkeys(name for pair in pairs for name in (pair["first"], pair["second"])))
        told = ", ".join(
            f"{short(key)}={value}" for key, value in kept.items() if any(other.get(key) != value for other in settings)
        )
        rows = [
            {"importance": one, **{other: _number(shares.get(frozenset((one, other))), ".2f") for other in names}}
            for one in names
        ]
        title = "Overlap of the selections" + (f" at {told}" if told else "")
        found.append((f"{title} (share of ids in common, mean over seeds; diagonal: between seeds)", rows))
    return found


def markdown(section: Section) -> str:
    """The whole section of a table: main table, notes, the other blocks, the fairness contract."""
    contract = [
        f"- **{c.status}**: {c.text}" + (f" ({escape.markdown(c.detail)})" if c.detail else "")
        for c in section.conditions
    ]
    contract += [f"- note: {escape.markdown(remark)}" for remark in section.remarks]
    parts = [
        f"## {escape.markdown(heading(section.table))}",
        _demonstration_markdown(section.table),
        _markdown_table(main_rows(section)) if section.lines else "No run has finished yet.",
        "\n".join(f"- {escape.markdown(note)}" for note in notes(section.table, section.lines)),
        *(f"**{escape.markdown(title)}**\n\n{_markdown_table(rows)}" for title, rows in blocks(section)),
        "**Fairness contract**\n\n" + "\n".join(contract),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _has_differences(numbers: list[dict]) -> bool:
    """Whether any row could be held against LoRA or full fine-tuning example by example."""
    return any(line["minus_lora"] is not None or line["minus_full"] is not None for line in numbers)


def metric(line: dict) -> str:
    """The primary metric with its interval: ± where it is symmetric, [low, high] where it is not."""
    if line["value"] is None:
        return NONE
    if line["low"] is None:
        return f"{line['value']:.4f}"
    if line["interval"] == OVER_EXAMPLES or line["interval_cut"]:
        return f"{line['value']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
    return f"{line['value']:.4f} ± {line['high'] - line['value']:.4f}"


def _demonstration_markdown(table: Table) -> str:
    found = demonstration(table)
    if found is None:
        return ""
    text = "> **This is a demonstration, not a result.** " + escape.markdown("; ".join(found["notes"])) + "."
    real = found["real_command"]
    return text + (f"\n>\n> For the real thing: {escape.code(real)}" if real else "")


def _markdown_table(rows: list[dict[str, str]]) -> str:
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(escape.markdown(cell) for cell in row) + " |" for row in cells)


def _parameters(line: dict) -> str:
    adapter, head = line["adapter_parameters"], line["head_parameters"]
    if adapter is None:
        return NONE
    return f"{adapter:,}" + (f" + {head:,} head" if head else "")


def _budget(line: dict) -> str:
    if not line["budget_asked"] or line["budget_achieved"] is None:
        return NONE
    return f"{line['budget_asked']:,} → {line['budget_achieved']:,} ({line['budget_off_percent']:+.2f} %)"


def _pair(line: dict) -> str:
    median, p95 = (_number(line[key], ",.0f", scale=1000) for key in ("step_median_seconds", "step_p95_seconds"))
    return NONE if median == NONE else f"{median} / {p95}"


def _difference(line: dict, prefix: str) -> str:
    value, low, high = line[prefix], line[f"{prefix}_low"], line[f"{prefix}_high"]
    if value is None:
        return NONE
    return f"{value:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if low is not None else "")


def _shared(line: dict, name: str) -> str:
    return " / ".join(_number(line[f"{prefix}_{name}"], ",d") for prefix in ("minus_lora", "minus_full"))


def _mib(value: float | None) -> str:
    return _number(value, ",.1f", scale=1 / 2**20)


def _times(value: float | None) -> str:
    return _number(value, ".2f", "×")


def _number(value: float | None, form: str, unit: str = "", scale: float = 1) -> str:
    return NONE if value is None else f"{value * scale if scale != 1 else value:{form}}{unit}"

"""What a reader needs around a table to read its numbers right."""

from rowsft.report import apart
from rowsft.report.grids import few
from rowsft.report.harness_notes import harness_notes
from rowsft.report.lines import memory_kinds, untrained_metrics
from rowsft.report.references import REFERENCES
from rowsft.report.rows import Table
from rowsft.report.section import Section
from rowsft.report.settings import short_names
from rowsft.report.statistics import OVER_EXAMPLES
from rowsft.report.tuned import total

MEMORY_KINDS = {
    "cpu_profiler": "every allocation of a step, replayed from torch's profiler (CPU)",
    "cuda_allocator": "torch's CUDA allocator",
}
#: More than these do not fit a column's title.
_MOST_NAMES = 3


def of_the_same(table: Table) -> str:
    """Return " of the same rows, steps": what a row's LoRA shares with it beyond the whole table; else empty."""
    names = list(short_names(table.sweep.differs).values())
    if not names or not table.references.has("lora"):
        return ""
    return f" of the same {', '.join(names) if len(names) <= _MOST_NAMES else 'settings'}"


def _tuning(section: Section) -> list[str]:
    """Return which settings a tuning stage left without a row, and what it cost beside the runs that it was for."""
    texts = []
    if section.without_row:
        texts.append(f"Tuned for this table, but without a row in it: {'; '.join(map(str, section.without_row))}.")
    if not section.tuned:
        return texts
    runs, seconds = total(section.tuned.values())
    own = sum((line.total_seconds or 0) * line.seeds for line in section.lines)
    beside = f", {seconds / own:.1f} times that of the runs in this table" if own else ""
    return [*texts, f"Tuning: {runs:,} runs on validation, {seconds / 60:,.1f} minutes of computing{beside}."]


def notes(section: Section) -> list[str]:
    """Return the notes of a section's table."""
    table, lines = section.table, section.lines
    texts = []
    estimates = [line.estimate for line in lines if line.estimate]
    estimates += [cell.estimate for line in lines for cell in line.harness.values()]
    estimates += [estimate for line in lines for estimate in line.others.values()]
    intervals = sorted({estimate.covers for estimate in estimates if estimate.covers})
    if intervals:
        texts.append("Intervals: " + "; ".join(intervals) + ". Costs: medians over seeds.")
    if OVER_EXAMPLES in intervals:
        texts.append("A test-set interval says nothing about the spread between seeds.")
    if any(estimate.cut for estimate in estimates):
        what = "a metric" if section.harness or any(line.others for line in lines) else table.metric
        texts.append(f"Intervals that reach beyond what {what} can be are cut there and shown as [low, high].")
    texts += apart.note(table.rows)
    texts += _references(table)
    kinds = memory_kinds(table)
    if kinds:
        texts.append("Memory: " + "; ".join(MEMORY_KINDS.get(kind, kind) for kind in kinds) + ".")
    processes = sorted(
        {result.ranks.processes for row in table.rows for result in row.results if result.ranks.processes}
    )
    if processes:
        counts = ", ".join(map(str, processes))
        texts.append(
            f"Runs in several processes ({counts}): memory is that of the process with the most; records have each and "
            "their sum. Seconds are those of all together."
        )
    if any(result.scores_from_cache for row in table.rows for result in row.results):
        texts.append("Seconds of selection: of the runs that scored; others read the scores that those had kept.")
    zero = untrained_metrics(table)
    if zero:
        texts.append(
            f"Zero line, nothing trained ({table.split}): "
            + ", ".join(f"{name} {value:.4f}" for name, value in sorted(zero.items()))
            + "."
        )
    return texts + harness_notes(section) + _tuning(section)


def demonstration(table: Table) -> dict | None:
    """Return {"notes": [...], "real_command": text or None} when the experiment calls itself a demonstration."""
    stated = table.notes.get("demonstration")
    if not stated or not (not isinstance(stated, dict) or stated.get("is", True)):
        return None
    if not isinstance(stated, dict):
        return {"notes": [str(stated)] if stated is not True else [], "real_command": None}
    about = stated.get("notes") or []
    about = [str(note) for note in about] if isinstance(about, list) else [str(about)]
    return {"notes": about, "real_command": stated.get("real_command")}


def _references(table: Table) -> list[str]:
    """Return which LoRA and which full fine-tuning the rows are held against, and which rows have none."""
    texts = []
    differs = list(short_names(table.sweep.differs).values())
    present = [method for method in REFERENCES if table.references.has(method)]
    if differs and present:
        titles = " and ".join(table.infos[method].title for method in present)
        texts.append(
            f"Each row is held against {titles} of the same {', '.join(differs)}; a method without such a setting "
            "(full fine-tuning has no budget) stands for every value of it."
        )
    rows = [row for row in table.rows if row.done and row.trains]
    for method in present:
        reasons: dict[str, list[str]] = {"none": [], "several": []}
        for row in rows:
            reason = table.references.of(row, method).reason
            if reason in reasons:
                reasons[reason].append(row.title)
        title = table.infos[method].title
        if reasons["none"]:
            texts.append(f"No {title} with the same settings, so a dash: {few(reasons['none'], ', ')}.")
        if reasons["several"]:
            texts.append(f"Several {title} rows fit equally well, so a dash: {few(reasons['several'], ', ')}.")
    return texts

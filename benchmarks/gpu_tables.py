"""README.md of a results folder of `make gpu`: tables first, then what is missing, then where and how."""

import json
from pathlib import Path

from tables import failed, ratio, spread_text, table

GB = 1e9
_NOTES = """\
GB are of 10^9 bytes. Step peak: the most that a warm forward and backward takes above what is there before it (weights,
optimizer state, what the rows keep of the originals): activations and gradients. Peak allocated: the allocator's own
largest sum of tensors in one warm training step, with weights, gradients and AdamW's state (fused). Peak reserved: the
most that the allocator had taken from the driver in a step after its cache had been emptied. Step: from CUDA event to
CUDA event with nothing waiting for the device in between, forward, backward and optimizer step; median over all timed
steps, and the medians of the fastest and the slowest round. Every method is a process of its own and took its rounds at
one go, so ratios of times hold the rounds' own spread (the range in brackets: fastest round over the other's slowest,
to slowest over fastest), not a change of the card's clock between two methods. Ratios of tokens/s are the inverse of
those of times. The floor is backpropagation through the frozen network. Weights are random, as many trainable
parameters as LoRA of rank 64, no dropout."""


def page(record: dict, folder: Path, names: list[str]) -> str:
    """The whole file. names: the stages that the calls so far have come to, in order."""
    card = record["card"]
    parts = [f"# {card['name']}, {record['started_at'][:10]}, commit {_commit(record)}"]
    for name in names:
        stage = record["stages"][name]
        parts.append(f"## {stage['title']}")
        parts += _tables(folder / name)
        parts.append(f"{name}: {stage['state']}: {stage['note']}." + _took(stage))
    left = [f"- {name}: {record['stages'][name]['state']}: {record['stages'][name]['note']}" for name in names]
    left = [line for line, name in zip(left, names, strict=True) if record["stages"][name]["state"] != "done"]
    parts.append("## Not done\n\n" + ("\n".join(left) or "Nothing: every stage that was asked for is done."))
    parts.append("## How to read the tables\n\n" + _NOTES)
    parts.append("## Where and how\n\n" + _where(record))
    return "\n\n".join(parts) + "\n"


def _commit(record: dict) -> str:
    commit = (record["commit"] or "unknown")[:7]
    return f"{commit}{' with changes' if record['dirty'] else ''} (source {record['source']})"


def _took(stage: dict) -> str:
    if "commands" not in stage:
        return ""
    commands = "".join(f" `{command}`" for command in stage["commands"])
    return f" {stage['seconds']:.0f} s;{commands}"


def _where(record: dict) -> str:
    card = record["card"]
    versions = ", ".join(f"{name} {version}" for name, version in record["packages"].items() if version)
    memory = f", {card['memory_bytes'] / GB:.1f} GB" if card["memory_bytes"] else ""
    lines = [
        f"- card: {card['name']}{memory}; driver {record['driver']}, CUDA {record['cuda']}",
        f"- host: {record['cpu']}",
        f"- versions: {versions}",
        f"- commit: {record['commit']}, source digest {record['source']}",
        *(f"- call: `{call}`" for call in record["calls"]),
    ]
    return "\n".join(lines)


def _tables(folder: Path) -> list[str]:
    tables = {
        "step.json": step_table,
        "plan_accuracy.json": plan_table,
        "selection.json": selection_table,
        "writing.json": writing_table,
    }
    found = []
    for name, drawn in tables.items():
        path = folder / name
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        found += [drawn(rows)] if rows else []
    report = folder / "report.md"
    return found + ([report.read_text()] if report.exists() else [])


def step_table(rows: list[dict]) -> str:
    """A row a method: bytes, time and tokens, each over the floor and over LoRA."""
    titles = ["method", "trainable", "step peak GB", "/ floor", "/ LoRA", "peak allocated GB", "/ floor", "/ LoRA"]
    titles += ["peak reserved GB", "/ floor", "/ LoRA"]
    titles += ["step ms, median [rounds]", "/ floor", "/ LoRA", "tokens/s"]
    return table(titles, [_step_cells(row, len(titles)) for row in rows])


def _step_cells(row: dict, width: int) -> list[str]:
    if "error" in row:
        return failed(row["method"], row, width)
    cells = [row["method"], f"{row['trainable_parameters']:,}"]
    for key in ("step_peak_bytes", "total_peak_bytes", "total_peak_reserved_bytes"):
        cells.append(f"{row[key] / GB:.2f}" if key in row else "–")
        cells += [ratio(row.get(f"{key}_over_{reference}")) for reference in ("floor", "lora")]
    time = f"{1000 * row['step_seconds_median']:.1f}" if "step_seconds_median" in row else "–"
    if "round_seconds_low" in row:
        time += f" [{1000 * row['round_seconds_low']:.1f}, {1000 * row['round_seconds_high']:.1f}]"
    cells.append(time)
    cells += [ratio(row.get(f"step_seconds_over_{reference}")) for reference in ("floor", "lora")]
    tokens = row.get("tokens_per_second")
    return [*cells, f"{tokens:,.0f}" if tokens else "–"]


def plan_table(rows: list[dict]) -> str:
    """A row a cell, the worst first; before it the largest error of all."""
    titles = ["method", "shape", "attention", "checkpointing", "planned GB", "measured GB", "plan's error"]
    cells = []
    for row in rows:
        name = f"{row['family']} {row['layers']} x {row['width']}, {row['batch']} x {row['length']}"
        begin = [row["method"], name, row["attention"], "on" if row["checkpointing"] else "off"]
        if "error" in row:
            cells.append([*begin, *failed("", row, 3)[1:], ""])
            continue
        sizes = [f"{row[key] / GB:.3f}" for key in ("planned_bytes", "measured_bytes")]
        cells.append([*begin, *sizes, f"{100 * row['relative_error']:+.2f} %"])
    errors = [abs(row["relative_error"]) for row in rows if "error" not in row]
    worst = f"Largest error of {len(errors)} cells: {100 * max(errors):.2f} %.\n\n" if errors else ""
    return worst + table(titles, cells)


def selection_table(rows: list[dict]) -> str:
    """A row a metric: what scoring all layers takes."""
    titles = ["metric", "peak of new allocations GB", "/ step peak of the rows", "seconds"]
    cells = []
    for row in rows:
        draws = f" ({row['draws']} draws)" if "draws" in row else ""
        if "error" in row:
            cells.append(failed(row["metric"], row, len(titles)))
            continue
        peak = f"{row['peak_bytes'] / GB:.3f}"
        cells.append([row["metric"] + draws, peak, f"{row['peak_over_step']:.2f}", f"{row['seconds']:.2f}"])
    return table(titles, cells)


def writing_table(rows: list[dict]) -> str:
    """A row a channel: bytes and the device's milliseconds of writing all layers and of restoring them."""
    titles = ["method", "write MB, least / moved", "write ms", "restore MB, least / moved", "restore ms", "step ms"]
    titles += ["write + restore / step", "host ms, write / restore"]
    cells = []
    for row in rows:
        if "error" in row:
            cells.append(failed(row["method"], row, len(titles)))
            continue
        cells.append([row["method"]])
        for work in ("write", "restore"):
            cells[-1].append(" / ".join(f"{row[f'{work}_{kind}_bytes'] / 1e6:,.0f}" for kind in ("least", "moved")))
            cells[-1].append(spread_text(row[f"{work}_seconds"], 1000))
        host = [row.get(f"{work}_host_seconds") for work in ("write", "restore")]
        cells[-1] += [
            spread_text(row["step_seconds"], 1000, ".1f"),
            spread_text(row["share_of_step"], 100, ".2f") + " %",
            " / ".join(f"{1000 * value['median']:.1f}" for value in host) if all(host) else "–",
        ]
    return table(titles, cells)

"""Measurements -> rows with ratios -> JSON, a Markdown table, a picture."""

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import failed, ratio, spread, table

from rowsft.report.labels import Point, place
from rowsft.store.files import write_atomic

MIB = 2**20
INK, OTHER = "#1c2024", "#7f7f7f"
# Row-SFT's channels alike, and the others as in every picture of the suite.
COLOURS = {
    **dict.fromkeys(("rows", "columns", "both", "neurons"), "#D55E00"),
    "lora": "#0072B2",
    "dora": "#56B4E9",
    "full": "#009E73",
    "shira": "#CC79A7",
    "supertuning": "#CC6677",
    "vera": "#332288",
    "ia3": "#44AA99",
    "bitfit": "#999933",
    "ln_tuning": "#882255",
}
REFERENCES = ("floor", "lora")
EXACT = ("flops", "step_peak_bytes", "total_peak_bytes", "total_peak_reserved_bytes")
MEASURED = ("trainable_parameters", "tokens_per_step", *EXACT)
_COLUMNS = """\
FLOPs are those of forward and backward as torch's FlopCounterMode counts them; on a CPU it leaves attention's own
product out, for every method alike. Step peak: new allocations at once in a warm forward and backward. Total peak: the
whole step with weights, gradients and AdamW's state. Both are exact (on a CPU every allocation is replayed) and repeat.
Times: median and 95th percentile over all timed steps, which run apart from the measured ones. There is no dropout, and
only full and bitfit train biases."""
_BY_ROUND = "Ratios of times are taken round by round: median [lowest, highest]."
IN_TURN = """\
Every method took its rounds at one go, after the method before it had ended. A ratio of times is that of the medians
over all steps, and its range is that of the medians of rounds: fastest round over the other's slowest, to slowest over
fastest. Nothing but the rounds' own spread is in it: a change of the card's clock between two methods is not."""


def rows(
    shape: str,
    methods: list[str],
    measured: dict[str, dict],
    rounds: dict[str, list[list[float]]],
    errors: dict[str, str],
    in_turn: bool = False,
) -> list[dict]:
    """One row a method. `rounds`: method -> the seconds of its steps, round by round.

    A ratio of times is that of the medians of one round, so that a disturbance of the machine falls on both sides;
    given are its median, lowest and highest over the rounds. in_turn: rounds of two methods were not taken side by
    side: see IN_TURN. A method that failed has `error` and what was measured before.
    """
    found = []
    for name in methods:
        row = {"method": name, "shape": shape, **measured.get(name, {})}
        if rounds[name]:
            row |= _times(rounds[name], row.get("tokens_per_step"))
        for reference in REFERENCES:
            row |= _ratios(name, reference, measured, rounds, in_turn)
        if name in errors:
            row["error"] = errors[name]
        found.append(row)
    return found


def save(result: dict, out: Path) -> None:
    """step.json under `out`, whole at every moment: whoever measures may be ended at any."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "step.json", (json.dumps(result, indent=1) + "\n").encode())


def write(result: dict, out: Path) -> None:
    """step.json, step.md and step.png under `out`."""
    save(result, out)
    (out / "step.md").write_text(markdown(result))
    _picture(result["rows"], out / "step.png")


def markdown(result: dict) -> str:
    """One table a shape, with what its columns mean, the machine, the commit and the command."""
    shapes = list(dict.fromkeys(row["shape"] for row in result["rows"]))
    environment = result["environment"]
    hardware, threads = environment["hardware"], environment["threads"]
    device = ", ".join(gpu["name"] for gpu in hardware["gpus"]) if "cuda" in result["settings"]["device"] else None
    parts = []
    for shape in shapes:
        parts.append(f"## {shape}, {result['settings']['dtype']}")
        parts.append(_table([row for row in result["rows"] if row["shape"] == shape]))
    parts.append(f"{_COLUMNS}\n{IN_TURN if result['settings'].get('in_turn') == 'True' else _BY_ROUND}")
    parts.append("\n".join(f"- {name}: {about}" for name, about in result["about"].items()))
    parts.append(
        f"{device or hardware['cpu_model']}, {threads['torch_threads']} threads; torch "
        f"{environment['packages']['torch']}, peft {environment['packages']['peft']}; commit {result['commit']}"
        f"{' with changes' if environment['git_dirty'] else ''}; `{result['command']}`"
    )
    return "\n\n".join(parts) + "\n"


def _times(rounds: list[list[float]], tokens: int | None) -> dict:
    seconds = [second for turn in rounds for second in turn]
    median = float(np.median(seconds))
    turns = [float(np.median(turn)) for turn in rounds]
    return {
        "round_seconds_low": min(turns),
        "round_seconds_high": max(turns),
        "step_seconds_median": median,
        **({"tokens_per_second": tokens / median} if tokens else {}),
        "step_seconds_p95": float(np.percentile(seconds, 95)),
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
        "timed_steps": len(seconds),
    }


def _ratios(
    name: str, reference: str, measured: dict[str, dict], rounds: dict[str, list[list[float]]], in_turn: bool
) -> dict:
    ratios = {}
    if name in measured and reference in measured:
        mine, other = measured[name], measured[reference]
        ratios = {f"{key}_over_{reference}": mine[key] / other[key] for key in EXACT if key in mine and key in other}
    turns = list(zip(rounds[name], rounds.get(reference, []), strict=False))
    if turns and in_turn:
        mine, other = ([float(np.median(turn)) for turn in rounds[each]] for each in (name, reference))
        ratios[f"step_seconds_over_{reference}"] = {
            "median": float(np.median(np.concatenate(rounds[name])) / np.median(np.concatenate(rounds[reference]))),
            "low": min(mine) / max(other),
            "high": max(mine) / min(other),
        }
    elif turns:
        each = [float(np.median(mine) / np.median(other)) for mine, other in turns]
        ratios[f"step_seconds_over_{reference}"] = spread(each)
    return ratios


def _table(found: list[dict]) -> str:
    titles = ["method", "trainable", "GFLOPs", "step peak MiB", "total peak MiB", "step ms, median / p95"]
    titles += ["FLOPs / floor", "step peak / floor", "time / floor", "step peak / LoRA", "total peak / LoRA"]
    titles += ["time / LoRA"]
    return table(titles, [_cells(row, len(titles)) for row in found])


def _cells(row: dict, width: int) -> list[str]:
    if "error" in row:
        return failed(row["method"], row, width)
    ratios = ["flops_over_floor", "step_peak_bytes_over_floor", "step_seconds_over_floor"]
    ratios += ["step_peak_bytes_over_lora", "total_peak_bytes_over_lora", "step_seconds_over_lora"]
    return [
        row["method"],
        f"{row['trainable_parameters']:,}",
        f"{row['flops'] / 1e9:.3f}",
        f"{row['step_peak_bytes'] / MIB:.1f}",
        f"{row['total_peak_bytes'] / MIB:.1f}",
        f"{1000 * row['step_seconds_median']:.1f} / {1000 * row['step_seconds_p95']:.1f}",
        *(ratio(row.get(key), ".2f", "") for key in ratios),
    ]


def _picture(found: list[dict], path: Path) -> None:
    """Step time against step peak, both over the floor; a panel a shape. Nothing where the floor was not measured."""
    known = [row for row in found if {"step_seconds_over_floor", "step_peak_bytes_over_floor"} <= row.keys()]
    shapes = list(dict.fromkeys(row["shape"] for row in known))
    if not shapes:
        return
    figure = Figure(figsize=(6.6 * len(shapes), 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    drawn = []
    for axis, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        points = [_point(row) for row in known if row["shape"] == shape]
        for point in points:
            spread = [[point.y - point.low], [point.high - point.y]]
            axis.errorbar(point.x, point.y, yerr=spread, fmt="o", capsize=2, color=point.colour)
        axis.set(title=shape, xlabel="step peak / floor", ylabel="step time / floor (range over rounds)")
        axis.margins(0.16, 0.08)
        axis.grid(alpha=0.3)
        drawn.append((axis, points))
    figure.draw_without_rendering()
    for axis, points in drawn:
        place(axis, points, INK)
    figure.savefig(path)


def _point(row: dict) -> Point:
    time, peak = row["step_seconds_over_floor"], row["step_peak_bytes_over_floor"]
    return Point(row["method"], peak, time["median"], time["low"], time["high"], COLOURS.get(row["method"], OTHER))

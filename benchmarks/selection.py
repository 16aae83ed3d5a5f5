"""What choosing the rows costs: the peak and the time of every importance metric against a training step of the rows.

    python benchmarks/selection.py                     every registered metric on the Llama shape
    python benchmarks/selection.py --shape tiny_bert   seconds: does everything run?

The peak is that of new allocations while all eligible layers are scored, as in step.py, held against the step peak of
row-SFT's channel rows at the same batch. `lowest(m)` costs what m costs. Writes selection.json and selection.md.
"""

import argparse
import json
import shlex
import sys
import time
import warnings
from pathlib import Path

import torch
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES, Shape, batch, build
from tables import failed, table

from rowsft import score
from rowsft.importance import registry
from rowsft.measure import AllocationPeak, collect
from rowsft.measure.device import synchronize
from rowsft.store.attempt import state_of
from rowsft.store.files import write_atomic

MIB = 2**20
#: What one model is enough for.
METRICS = [name for name in registry.names() if registry.metric(name).needs != "changed weights"]
HERE = Path(__file__).resolve().parent


def step_peak_bytes(shape: Shape, device: torch.device, dtype: torch.dtype) -> int:
    """New allocations at once in a warm forward and backward of the row channel."""
    model = CONTENDERS["rows"].attach(build(shape, device, dtype), shape.rank).model
    inputs = batch(shape, device)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with AllocationPeak(device) as peak:
            model(**inputs).loss.backward()
    return peak.new_peak_bytes


def scored(model, metric: str, batches: list[dict], limit_bytes: int, draws: int = 8) -> dict:
    """One row: peak_bytes, peak_over_step, seconds; `error` where the metric could not be computed.

    draws: of zo_taylor, whose time is that many times the same thing and whose peak does not depend on them.
    """
    device = model.device
    needs = registry.metric(metric).needs
    row = {"metric": metric, "needs": needs, "calibration_batches": len(batches)}
    if needs == "losses":
        row["draws"] = draws
        metric = f"{metric}(draws={draws})"
    try:
        with AllocationPeak(device) as peak:
            score(model, metric, batches)
        synchronize(device)
        begin = time.perf_counter()
        score(model, metric, batches)
        synchronize(device)
    except Exception as error:
        oom = {"oom": True} if state_of(error) == "oom" else {}
        return {**row, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", **oom}
    seconds = time.perf_counter() - begin
    return {
        **row,
        "peak_bytes": peak.new_peak_bytes,
        "peak_over_step": peak.new_peak_bytes / limit_bytes,
        "seconds": seconds,
    }


def markdown(result: dict) -> str:
    """The table, the machine's part and the command."""
    titles = ["metric", "needs", "peak MiB", "peak / step peak of the rows", "seconds"]
    cells = []
    for row in result["rows"]:
        name = f"{row['metric']} ({row['draws']} draws)" if "draws" in row else row["metric"]
        if "error" in row:
            cells.append(failed(name, row, len(titles)))
            continue
        numbers = [f"{row['peak_bytes'] / MIB:.1f}", f"{row['peak_over_step']:.3f}", f"{row['seconds']:.2f}"]
        cells.append([name, row["needs"], *numbers])
    about = (
        f"{result['shape']}, {result['calibration_batches']} calibration batches; a training step of the row channel "
        f"peaks at {result['step_peak_bytes'] / MIB:.1f} MiB. The seconds are those of one run. Commit "
        f"{result['commit']}; `{result['command']}`"
    )
    return f"{table(titles, cells)}\n\n{about}\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a metric could not be measured: its row says why."""
    # PEFT and transformers announce renamings; nothing here is about them.
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama", help="model to score")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, metavar="METRIC", help="some of them")
    parser.add_argument("--batches", type=int, default=2, help="calibration batches of the shape's size")
    parser.add_argument("--draws", type=int, default=8, help="of zo_taylor (a run's default is 256)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    options = parser.parse_args(arguments)
    shape, device = SHAPES[options.shape], torch.device(options.device)
    limit = step_peak_bytes(shape, device, DTYPES[options.dtype])
    model = build(shape, device, DTYPES[options.dtype])
    batches = [batch(shape, device, index) for index in range(options.batches)]
    environment = collect({"seed": SEED})
    result = {
        "rows": [],
        "shape": options.shape,
        "calibration_batches": options.batches,
        "step_peak_bytes": limit,
        "environment": environment,
        "command": shlex.join(["python", "benchmarks/selection.py", *(arguments or sys.argv[1:])]),
        "commit": environment["git_commit"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for metric in options.metrics or METRICS:
        result["rows"].append(scored(model, metric, batches, limit, options.draws))
        # After every metric: whoever measures may be ended at any moment.
        write_atomic(options.out / "selection.json", (json.dumps(result, indent=1) + "\n").encode())
        print(f"{options.shape}: {metric} scored", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    (options.out / "selection.md").write_text(markdown(result))
    print(markdown(result))
    return 1 if any("error" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())

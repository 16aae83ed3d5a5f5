"""What writing the rows costs: seconds and bytes of writing all layers and of restoring them, against a step.

    python benchmarks/writing.py                            every channel on the Llama shape
    python benchmarks/writing.py --shape llama3_8b --device cuda --dtype bf16
    python benchmarks/writing.py --shape llama3_8b --dtype bf16 --planned       without a device: from sizes alone
    python benchmarks/writing.py --shape tiny_bert          seconds: does everything run?

A forward writes W0 + delta into each layer's base weight and the end of its backward restores W0. Here all layers are
written at once and restored at once, in turn with a warm forward and backward of the same model, by the layers' own
code. Checkpointing, which forwards twice, writes twice. Writes writing.json and writing.md.
"""

import argparse
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES, Shape, batch, build
from tables import failed, spread, spread_text, table
from torch import nn

from rowsft.measure import collect
from rowsft.methods.base import method_class
from rowsft.plan.cost import Costs
from rowsft.plan.devices import DEVICES
from rowsft.plan.step import plan_step
from rowsft.selection.budget import Budget
from rowsft.selection.channel import CHANNELS
from rowsft.selection.targets import Targets
from rowsft.store.attempt import state_of
from rowsft.store.files import write_atomic
from rowsft.tuner.contents import Claim
from rowsft.tuner.layer import RowSFTLayer

MIB = 2**20
HERE = Path(__file__).resolve().parent
# Some 50 ms of a GPU's clock: the host is through with its calls before the first of them runs.
AHEAD_CYCLES = 10**8


class Writing:
    """All row-SFT layers of a model, written and restored by their own code."""

    def __init__(self, model: nn.Module):
        layers = [module for module in model.modules() if isinstance(module, RowSFTLayer)]
        updates = [layer._updates(layer._adapters(layer.active_adapters)) for layer in layers]
        self.work = [(layer, held) for layer, held in zip(layers, updates, strict=True) if held]
        self.claims: list[Claim] = []

    def write(self) -> None:
        self.claims = [layer._claim(updates, recorded=True) for layer, updates in self.work]

    def restore(self) -> None:
        for claim in self.claims:
            claim.release()

    def bytes_moved(self) -> dict[str, int]:
        """Of a warm write and restore.

        `*_least`: the originals and the deltas are read and W is written; the originals are read and W is written.
        `*_moved`: what the operators move that the layers call, one after another, if nothing stays in a cache.
        """
        self.write()
        self.restore()
        counted = {}
        for name, work in (("write", self.write), ("restore", self.restore)):
            with Costs() as costs:
                work()
            counted[f"{name}_moved_bytes"] = costs.bytes_moved
        least = {"write_least_bytes": 0, "restore_least_bytes": 0}
        for layer, updates in self.work:
            size = layer.get_base_layer().weight.element_size()
            for value in (value for update in updates for value in update.values):
                least["write_least_bytes"] += value.numel() * (size + value.element_size() + size)
                least["restore_least_bytes"] += value.numel() * 2 * size
        return {**least, **counted}


def measured(shape: Shape, name: str, device: torch.device, dtype: torch.dtype, rounds: int) -> dict:
    """One row: bytes, and the seconds of a step, a write and a restore with their share, round by round."""
    attached = CONTENDERS[name].attach(build(shape, device, dtype), shape.rank)
    model, inputs = attached.model, batch(shape, device)

    def step() -> None:
        model(**inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    step()
    writing = Writing(model)
    row = {"method": name, "layers": len(writing.work), "trainable_parameters": attached.trainable_parameters}
    row |= writing.bytes_moved()
    seconds: dict[str, list[float]] = {"step": [], "write": [], "restore": []}
    host: dict[str, list[float]] = {"write": [], "restore": []}
    for _ in range(rounds):
        seconds["step"].append(timed(step, device))
        # The step has filled the caches with something else, as before every layer of a real forward.
        seconds["write"].append(timed(writing.write, device, ahead=True))
        seconds["restore"].append(timed(writing.restore, device, ahead=True))
        if device.type == "cuda":
            for work in host:
                begin = time.perf_counter()
                getattr(writing, work)()
                host[work].append(time.perf_counter() - begin)
            torch.cuda.synchronize(device)
    for work, values in seconds.items():
        row[f"{work}_seconds"] = spread(values)
    for work, values in host.items():
        if values:
            row[f"{work}_host_seconds"] = spread(values)
    turns = zip(*seconds.values(), strict=True)
    row["share_of_step"] = spread([(write + restore) / step for step, write, restore in turns])
    return row


def timed(work: Callable[[], None], device: torch.device, ahead: bool = False) -> float:
    """Seconds of `work`. On a GPU those between two events; ahead: of the device's part alone."""
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    if ahead:
        torch.cuda._sleep(AHEAD_CYCLES)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def planned(shape: Shape, name: str, dtype: torch.dtype) -> dict:
    """One row without a device: bytes, the roofline step time of known devices, and what share of it they take."""
    meta = torch.device("meta")
    method = method_class("row_sft")(importance="random", train_bias=False, channel=name)
    model = build(shape, meta, dtype)
    resolved = method.solve(Budget(like={"method": "lora", "r": shape.rank}), model, Targets())
    [resolved] = method.selection_bounds(model, resolved).values()
    model.config.use_cache = False
    with meta:
        model = method.attach(model, resolved)
    step = plan_step(model, batch(shape, meta), gpu=True, padded=False)
    writing = Writing(model)
    row = {"method": name, "layers": len(writing.work), "trainable_parameters": method.trainable(model)["total"]}
    row |= writing.bytes_moved()
    least, moved = (row[f"write_{kind}_bytes"] + row[f"restore_{kind}_bytes"] for kind in ("least", "moved"))
    row["devices"] = {}
    for device in DEVICES.values():
        seconds = step.costs.seconds(device)
        row["devices"][device.name] = {
            "roofline_step_seconds": seconds,
            "least_share_of_step": least / device.bytes_per_second / seconds,
            "moved_share_of_step": moved / device.bytes_per_second / seconds,
        }
    return row


def markdown(result: dict) -> str:
    """The table, what its columns mean, the machine and the command."""
    titles = ["method", "write MiB, least / moved", "restore MiB, least / moved"]
    if result["planned"]:
        titles += [f"{name}: step ms, share least / moved" for name in DEVICES]
    else:
        titles += ["step ms", "write ms", "restore ms", "write + restore / step"]
    lines = []
    for row in result["rows"]:
        if "error" in row:
            lines.append(failed(row["method"], row, len(titles)))
            continue
        moved = [
            " / ".join(f"{row[f'{work}_{kind}_bytes'] / MIB:.2f}" for kind in ("least", "moved"))
            for work in ("write", "restore")
        ]
        lines.append([row["method"], *moved, *(_shares(row) if result["planned"] else _seconds(row))])
    about = """\
Least: the originals and the deltas are read and W is written; the originals are read and W is written back. Moved: what
the layers' operators move one after another if nothing stays in a cache."""
    if result["planned"]:
        about += """
Planned: the step is the roofline of `rowsft plan`, which no real step reaches, and the share is that of bytes over the
data sheet's bandwidth; launching kernels is not in it."""
    else:
        about += """
Step: a warm forward and backward, its own writes included. Median [lowest, highest] over the rounds; the share is taken
round by round. On a GPU the device's seconds; those of the host, which run beside it, are in writing.json."""
    environment = result["environment"]
    machine = environment["hardware"], environment["threads"]["torch_threads"]
    gpus = ", ".join(gpu["name"] for gpu in machine[0]["gpus"]) if result["device"] == "cuda" else None
    where = "no device" if result["planned"] else f"{gpus or machine[0]['cpu_model']}, {machine[1]} threads"
    end = f"{result['shape']}, {result['dtype']}; {where}; commit {result['commit']}; `{result['command']}`"
    return f"{table(titles, lines)}\n\n{about}\n\n{end}\n"


def _seconds(row: dict) -> list[str]:
    cells = [spread_text(row[f"{work}_seconds"], 1000) for work in ("step", "write", "restore")]
    share = row["share_of_step"]
    return [*cells, f"{share['median']:.2%} [{share['low']:.2%}, {share['high']:.2%}]"]


def _shares(row: dict) -> list[str]:
    return [
        f"{1e3 * on['roofline_step_seconds']:.1f}, {on['least_share_of_step']:.2%} / {on['moved_share_of_step']:.2%}"
        for on in row["devices"].values()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a channel could not be measured: its row says why."""
    # PEFT and transformers announce renamings; nothing here is about them.
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama", help="model to write in")
    parser.add_argument("--channels", nargs="+", choices=list(CHANNELS), default=list(CHANNELS), metavar="CHANNEL")
    parser.add_argument("--rounds", type=int, default=10, help="of a step, a write and a restore")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    parser.add_argument("--planned", action="store_true", help="from sizes alone, for known devices")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    options = parser.parse_args(arguments)
    shape, dtype, device = SHAPES[options.shape], DTYPES[options.dtype], torch.device(options.device)
    environment = collect({"seed": SEED})
    result = {
        "rows": [],
        "shape": options.shape,
        "dtype": options.dtype,
        "device": device.type,
        "planned": options.planned,
        "rounds": options.rounds,
        "environment": environment,
        "command": shlex.join(["python", "benchmarks/writing.py", *(arguments or sys.argv[1:])]),
        "commit": environment["git_commit"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.channels:
        try:
            found = planned(shape, name, dtype) if options.planned else None
            row = found or measured(shape, name, device, dtype, options.rounds)
        except Exception as error:
            oom = {"oom": True} if state_of(error) == "oom" else {}
            first = " ".join(str(error).split())[:300]
            row = {"method": name, "error": f"{type(error).__name__}: {first}", **oom}
        # shape: what `rowsft compare` calls a row's numbers by.
        result["rows"].append({"shape": options.shape, **row})
        # After every channel: whoever measures may be ended at any moment.
        write_atomic(options.out / "writing.json", (json.dumps(result, indent=1) + "\n").encode())
        print(f"{options.shape}: {name} done", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    (options.out / "writing.md").write_text(markdown(result))
    print(markdown(result))
    return 1 if any("error" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())

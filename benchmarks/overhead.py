"""What the harness costs: the suite's training loop against the same loop written by hand, step by step.

    python benchmarks/overhead.py             row-SFT on a MiniLM-sized encoder and a small Llama, on the CPU
    python benchmarks/overhead.py --tiny      steps of milliseconds: the absolute cost, and does everything run?
    python benchmarks/overhead.py --shape llama --method lora --device cuda

Three loops train the same model with the same optimizer on the same batches: `by hand` (plain PyTorch, written out
below), `Trainer` (transformers' without any of our measuring) and `suite` (rowsft.runner.trainer as every run uses it:
clocks of steps and of data, the curve, the watch for divergence; the detailed memory ledger is off, as it is in every
timed step of a run). After every step of the Trainer or the suite follows one by hand, on the same model, so that what
disturbs the machine disturbs both; a step's time is wall-clock from the end of the step before, so that it has
everything in it: getting the batch, the step, writing its loss down. Ratios and differences are those of such pairs.
Writes overhead.json and overhead.md into --out.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES, batch, build
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from rowsft.config.settings import TrainerSettings
from rowsft.measure import StepClock, collect
from rowsft.measure.device import synchronize
from rowsft.runner import schedule
from rowsft.runner import trainer as training

HERE = Path(__file__).resolve().parent
RATE, CLIP = 1e-4, 1.0
HARNESSES = ("Trainer", "suite")
BOOTSTRAPS = 2000


class HarnessPair:
    """One model, its examples, and the loops over them."""

    def __init__(self, shape: str, options: argparse.Namespace):
        self.shape = SHAPES[shape]
        self.steps = options.steps
        self.device = torch.device(options.device)
        plain = build(self.shape, self.device, DTYPES[options.dtype])
        self.model = CONTENDERS[options.method].attach(plain, self.shape.rank).model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.examples = [example for index in range(self.steps) for example in self._examples(index)]
        self.settings = TrainerSettings(
            learning_rate=RATE, steps=self.steps, batch_size=self.shape.batch, device=self.device.type
        )

    def by_hand(self) -> Iterator[float]:
        """The loop by hand; every `next` takes one step and gives its loss."""
        order = schedule.data_order(len(self.examples), len(self.examples), SEED)
        optimizer = self._optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        for first in range(0, len(order), self.shape.batch):
            inputs = collate([self.examples[index] for index in order[first : first + self.shape.batch]])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            loss = self.model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            yield loss.item()

    def pairs(self, harness: str, warmup: int = 1) -> list[tuple[float, float]]:
        """(seconds of the harness's step, seconds of the one by hand) of every step after the first `warmup`."""
        with tempfile.TemporaryDirectory() as scratch:
            trainer = (self._suite if harness == "suite" else self._trainer)(Path(scratch))
            turns = Turns(self.by_hand(), self._now)
            trainer.add_callback(turns)
            trainer.train()
        return turns.pairs[warmup:]

    def _trainer(self, scratch: Path) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(scratch),
            max_steps=self.steps,
            per_device_train_batch_size=self.shape.batch,
            learning_rate=RATE,
            max_grad_norm=CLIP,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=self.device.type == "cpu",
        )
        trainer = Trainer(
            model=self.model,
            args=arguments,
            train_dataset=self.examples,
            data_collator=collate,
            optimizers=(self._optimizer(), None),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _suite(self, scratch: Path) -> Trainer:
        return training.build_trainer(
            self.model,
            self.examples,
            collate,
            self.settings,
            SEED,
            StepClock(self.settings.timing_warmup_steps, self.device),
            lambda point: None,
            scratch,
            normalises_by_tokens=False,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        on_gpu = self.device.type == "cuda"
        return torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0, fused=on_gpu, foreach=False)

    def _examples(self, index: int) -> list[dict]:
        tensors = batch(self.shape, torch.device("cpu"), index)
        return [{name: tensor[row] for name, tensor in tensors.items()} for row in range(self.shape.batch)]

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


class Turns(TrainerCallback):
    """After every step of a Trainer, one by hand. pairs: seconds of the Trainer's step, of the step by hand."""

    def __init__(self, by_hand: Iterator[float], now: Callable[[], float]):
        self.by_hand, self.now = by_hand, now
        self.pairs: list[tuple[float, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        # What a Trainer does after this, logging and all, counts as its next step's.
        between = self.now()
        next(self.by_hand)
        end = self.now()
        self.pairs.append((between - self.begin, end - between))
        self.begin = end


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Stacked: the examples of a shape are equally long."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def measure(shape: str, options: argparse.Namespace) -> dict:
    """One row: seconds of a step by hand, and what each harness adds to it, with an interval of the median."""
    harness_pair = HarnessPair(shape, options)
    order = random.Random(SEED)
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in HARNESSES}
    for number in range(options.rounds):
        for name in order.sample(HARNESSES, len(HARNESSES)):
            pairs[name] += harness_pair.pairs(name)
        print(f"{shape}: round {number + 1} of {options.rounds}", file=sys.stderr)
    row = {"shape": shape, "method": options.method, "pairs": len(pairs["suite"])}
    row["by_hand_step_seconds"] = float(np.median([by_hand for taken in pairs.values() for _, by_hand in taken]))
    for name in HARNESSES:
        harness, by_hand = np.transpose(pairs[name])
        row[f"{name.lower()}_minus_by_hand_seconds"] = _median(harness - by_hand)
        row[f"{name.lower()}_over_by_hand"] = _median(harness / by_hand)
    return row


def _median(values: np.ndarray) -> dict[str, float]:
    """The median, with the middle 95 % of its bootstrap."""
    drawn = np.random.default_rng(SEED).choice(values, (BOOTSTRAPS, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = ["| shape | method | pairs | by hand ms | "]
    lines[0] += " | ".join(f"{name} − by hand ms | {name} / by hand" for name in HARNESSES) + " |"
    lines.append("|---|---|" + "---:|" * (2 + 2 * len(HARNESSES)))
    for row in rows:
        cells = [row["shape"], row["method"], str(row["pairs"]), f"{row['by_hand_step_seconds'] * 1000:,.2f}"]
        for name in map(str.lower, HARNESSES):
            cells.append(_cell(row[f"{name}_minus_by_hand_seconds"], 1000, 2))
            cells.append(_cell(row[f"{name}_over_by_hand"], 1, 4))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nMilliseconds a step; median of the pairs of steps [95 % of its bootstrap].\n"


def _cell(found: dict[str, float], factor: float, digits: int) -> str:
    median, low, high = (f"{found[name] * factor:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and print; exit status 0."""
    options = _parser().parse_args(arguments)
    logging.set_verbosity_error()
    rows = [measure(shape, options) for shape in options.shape]
    environment = collect({"seed": SEED})
    command = shlex.join(["python", "benchmarks/overhead.py", *(sys.argv[1:] if arguments is None else arguments)])
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    result = {"rows": rows, "settings": settings, "environment": environment, "command": command}
    (options.out / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "overhead.md").write_text(f"`{command}`\n\n{table(rows)}")
    print(table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["bert", "llama", "tiny_bert"])
    parser.add_argument("--tiny", dest="shape", action="store_const", const=["tiny_bert", "tiny_llama"])
    parser.add_argument("--method", choices=CONTENDERS, default="rows")
    parser.add_argument("--rounds", type=int, default=3, help="trainings with each harness")
    parser.add_argument("--steps", type=int, default=21, help="steps of a training; the first is left out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What the harness costs: the suite's training loop against the same loop written by hand, and transformers' own.

    python benchmarks/overhead.py             row-SFT on a MiniLM-sized encoder and a small Llama, on the CPU
    python benchmarks/overhead.py --tiny      steps of milliseconds: the absolute cost, and does everything run?
    python benchmarks/overhead.py --shape llama --method lora --device cuda

Three loops train the same model with the same optimizer on the same batches: `by hand` (plain PyTorch, written out
below), `Trainer` (transformers' without any of our measuring) and `suite` (rowsft.training as every run uses it: clocks
of steps and of data, the curve, the watch for divergence; the detailed memory ledger is off, as it is in every timed
step of a run). They take turns of a few steps in random order, all in one process, so that what disturbs the machine
disturbs all alike. A turn's time is wall-clock from before its first batch is fetched until its last step is done and
logged, per step; ratios are taken turn by turn. Writes overhead.json and overhead.md into --out.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES, batch, build
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from rowsft import training
from rowsft.measure import StepClock, collect
from rowsft.measure.device import synchronize
from rowsft.settings import TrainerSettings

HERE = Path(__file__).resolve().parent
RATE, CLIP = 1e-4, 1.0
LOOPS = ("by hand", "Trainer", "suite")
BOOTSTRAPS = 2000


class Contest:
    """One model, its examples, and the three loops over them, each of which returns its seconds a step."""

    def __init__(self, shape: str, options: argparse.Namespace):
        self.shape = SHAPES[shape]
        self.steps = options.steps
        self.device = torch.device(options.device)
        plain = build(self.shape, self.device, DTYPES[options.dtype])
        self.model = CONTENDERS[options.method].attach(plain, self.shape.rank).model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.examples = [example for index in range(self.steps) for example in self._examples(index)]
        self.order = training.data_order(len(self.examples), len(self.examples), SEED)
        self.settings = TrainerSettings(
            learning_rate=RATE, steps=self.steps, batch_size=self.shape.batch, device=self.device.type
        )

    def by_hand(self) -> float:
        optimizer = self._optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        losses = []
        begin = self._now()
        for first in range(0, len(self.examples), self.shape.batch):
            inputs = collate([self.examples[index] for index in self.order[first : first + self.shape.batch]])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            loss = self.model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return (self._now() - begin) / self.steps

    def trainer(self) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch,
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
            watch = _Watch(self._now)
            trainer = Trainer(
                model=self.model,
                args=arguments,
                train_dataset=self.examples,
                data_collator=collate,
                callbacks=[watch],
                optimizers=(self._optimizer(), None),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return watch.seconds / self.steps

    def suite(self) -> float:
        clock = StepClock(self.settings.timing_warmup_steps, self.device)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = training.build_trainer(
                self.model,
                self.examples,
                collate,
                self.settings,
                SEED,
                clock,
                lambda point: None,
                Path(scratch),
                normalises_by_tokens=False,
            )
            watch = _Watch(self._now)
            trainer.add_callback(watch)
            trainer.train()
        clock.summary()
        return watch.seconds / self.steps

    def _optimizer(self) -> torch.optim.Optimizer:
        on_gpu = self.device.type == "cuda"
        return torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0, fused=on_gpu, foreach=False)

    def _examples(self, index: int) -> list[dict]:
        tensors = batch(self.shape, torch.device("cpu"), index)
        return [{name: tensor[row] for name, tensor in tensors.items()} for row in range(self.shape.batch)]

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


class _Watch(TrainerCallback):
    """Seconds of the one epoch: from before its first batch until its last step is done and logged."""

    def __init__(self, now: Callable[[], float]):
        self.now = now
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = self.now()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds = self.now() - self.begin


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Stacked: the examples of a shape are equally long."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def measure(shape: str, options: argparse.Namespace) -> dict:
    """One row: seconds a step of each loop, and the suite's ratios with an interval of the median."""
    contest = Contest(shape, options)
    loops = dict(zip(LOOPS, (contest.by_hand, contest.trainer, contest.suite), strict=True))
    order = random.Random(SEED)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for number in range(-1, options.rounds):
        for name in order.sample(LOOPS, len(LOOPS)):
            taken = loops[name]()
            # The first round warms caches and the allocator up.
            if number >= 0:
                seconds[name].append(taken)
        print(f"{shape}: round {number + 1} of {options.rounds}", file=sys.stderr)
    return {
        "shape": shape,
        "method": options.method,
        "rounds": options.rounds,
        "steps": options.steps,
        **{f"{name.replace(' ', '_').lower()}_step_seconds": float(np.median(seconds[name])) for name in LOOPS},
        "extra_step_seconds": float(np.median(np.subtract(seconds["suite"], seconds["by hand"]))),
        "suite_over_by_hand": _ratio(seconds["suite"], seconds["by hand"]),
        "suite_over_trainer": _ratio(seconds["suite"], seconds["Trainer"]),
    }


def _ratio(left: list[float], right: list[float]) -> dict[str, float]:
    """Median of the rounds' ratios, with the middle 95 % of its bootstrap."""
    ratios = np.divide(left, right)
    drawn = np.random.default_rng(SEED).choice(ratios, (BOOTSTRAPS, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    names = ("shape", "method", "by hand ms", "Trainer ms", "suite ms", "suite − by hand ms")
    lines = [
        "| " + " | ".join((*names, "suite / by hand", "suite / Trainer")) + " |",
        "|---|---|" + "---:|" * 6,
    ]
    for row in rows:
        times = [f"{row[f'{name}_step_seconds'] * 1000:,.2f}" for name in ("by_hand", "trainer", "suite", "extra")]
        ratios = [
            f"{row[name]['median']:.4f} [{row[name]['low']:.4f}, {row[name]['high']:.4f}]"
            for name in ("suite_over_by_hand", "suite_over_trainer")
        ]
        lines.append("| " + " | ".join((row["shape"], row["method"], *times, *ratios)) + " |")
    return "\n".join(lines) + "\n\nMilliseconds a step; ratios: median of the rounds [95 % of its bootstrap].\n"


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
    parser.add_argument("--rounds", type=int, default=15, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=10, help="training steps a turn")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""One method in a process of its own: builds, measures bytes and FLOPs, then times steps whenever it is told to.

Started by step.py. First line out, when everything is imported: "ready". First line in: the settings as JSON -> the
measurements. Then one line out for each line in, `N` -> the seconds of N steps; it waits idle in between, and ends when
its input does.
"""

import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import torch
from contenders import CONTENDERS
from shapes import DTYPES, SHAPES, batch, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rowsft.measure import AllocationPeak, phase_memory
from rowsft.measure.flops import grouped_attention
from rowsft.store.attempt import state_of


class Trial:
    """A method attached to the shape's model, its optimizer, and one batch."""

    def __init__(self, settings: dict):
        self.device = torch.device(settings["device"])
        self.shape = SHAPES[settings["shape"]]
        plain = build(self.shape, self.device, DTYPES[settings["dtype"]], settings["checkpointing"])
        attached = CONTENDERS[settings["method"]].attach(plain, self.shape.rank)
        self.model: nn.Module = attached.model.train()
        self.trainable_parameters = attached.trainable_parameters
        self.backend = settings.get("compile")
        self.batch = batch(self.shape, self.device)
        self.optimizing = attached.optimizing
        self.optimizer: torch.optim.Optimizer | None = None
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            self.optimizer = self.optimizing.optimizer(self.model, self._adamw, 1e-4)
            self.optimizing.begin(self.model, self.optimizer, 0, 100)

    def _adamw(self, model: nn.Module, groups: list[dict]) -> torch.optim.Optimizer:
        # foreach's temporary copies of every parameter would be charged to full fine-tuning alone.
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=self.device.type == "cuda", foreach=False)

    def forward_backward(self) -> None:
        self.model(**self.batch).loss.backward()

    def step(self) -> None:
        """Forward, backward, update, and gradients dropped: as a step begins, so it ends."""
        self.forward_backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizing.after_step(self.model, self.optimizer, 0, 100)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def measured(self) -> dict:
        """trainable_parameters, flops, step_peak_bytes, total_peak_bytes: the same numbers every time on a CPU.

        On a GPU also total_peak_reserved_bytes: what the allocator had taken from the driver when it had taken most.
        """
        # Before torch.compile, whose operators are not counted.
        with FlopCounterMode(display=False, custom_mapping=grouped_attention()) as flops:
            self.forward_backward()
        self.drop_gradients()
        if self.backend:
            self.model.compile(backend=self.backend)
        # Warm: optimizer state, W0 of the rows and cached masks exist from the second step on.
        self.step()
        self.step()
        with AllocationPeak(self.device) as peak:
            self.forward_backward()
        self.drop_gradients()
        self._release()
        total = phase_memory(self.step, self.device, self.model, self.optimizer)
        on_gpu = self.device.type == "cuda"
        return {
            "trainable_parameters": self.trainable_parameters,
            "tokens_per_step": self.shape.batch * self.shape.length,
            "flops": flops.get_total_flops(),
            "step_peak_bytes": peak.new_peak_bytes,
            "total_peak_bytes": total.peak_allocated_bytes,
            **({"total_peak_reserved_bytes": total.peak_reserved_bytes} if on_gpu else {}),
        }

    def _release(self) -> None:
        """Give back what building left behind: the reserved bytes are to be those of a step."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after one that is not counted: the caches belong to another process."""
        self.step()
        if self.device.type != "cuda":
            return [self._timed() for _ in range(steps)]
        # From one event to the next, and nothing waits for the device in between: as training runs.
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self.step()
            mark.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1000 for begin, end in itertools.pairwise(marks)]

    def _timed(self) -> float:
        begin = time.perf_counter()
        self.step()
        return time.perf_counter() - begin


def main() -> None:
    """Answer on what was standard output; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(work: Callable[[], object]) -> None:
        try:
            said = {"ok": work()}
        except Exception as error:
            # Out of memory, or a method that this version does not have: a row of the table, and the others go on.
            said = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            said["oom"] = state_of(error) == "oom"
        print(json.dumps(said), file=answers, flush=True)
        if "error" in said:
            sys.exit(1)

    answer(lambda: "ready")
    settings = json.loads(sys.stdin.readline() or sys.exit())
    made = []

    def begin() -> dict:
        made.append(Trial(settings))
        return made[0].measured() if settings["measure"] else {}

    answer(begin)
    for line in sys.stdin:
        answer(lambda steps=int(line): made[0].seconds(steps))


if __name__ == "__main__":
    main()

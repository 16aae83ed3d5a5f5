"""One method in a process of its own: builds, measures bytes and FLOPs, then times steps whenever it is told to.

Started by step.py. Argument: the settings as JSON. First line out: the measurements. Then one line out for each line
in, `N` -> the seconds of N steps; it waits idle in between, and ends when its input does.
"""

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


class Trial:
    """A method attached to the shape's model, its optimizer, and one batch."""

    def __init__(self, settings: dict):
        self.device = torch.device(settings["device"])
        self.shape = SHAPES[settings["shape"]]
        plain = build(self.shape, self.device, DTYPES[settings["dtype"]], settings["checkpointing"])
        attached = CONTENDERS[settings["method"]].attach(plain, self.shape.rank)
        self.model: nn.Module = attached.model.train()
        self.trainable_parameters = attached.trainable_parameters
        self.batch = batch(self.shape, self.device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        on_gpu = self.device.type == "cuda"
        # foreach's temporary copies of every parameter would be charged to full fine-tuning alone.
        adamw = {"lr": 1e-4, "weight_decay": 0.0, "fused": on_gpu, "foreach": False}
        self.optimizer = torch.optim.AdamW(trained, **adamw) if trained else None

    def forward_backward(self) -> None:
        self.model(**self.batch).loss.backward()

    def step(self) -> None:
        """Forward, backward, update, and gradients dropped: as a step begins, so it ends."""
        self.forward_backward()
        if self.optimizer:
            self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def measured(self) -> dict:
        """trainable_parameters, flops, step_peak_bytes, total_peak_bytes: the same numbers every time on a CPU."""
        # Warm: optimizer state, W0 of the rows and cached masks exist from the second step on.
        self.step()
        self.step()
        with AllocationPeak(self.device) as peak:
            self.forward_backward()
        self.drop_gradients()
        total = phase_memory(self.step, self.device, self.model, self.optimizer)
        with FlopCounterMode(display=False) as flops:
            self.forward_backward()
        self.drop_gradients()
        return {
            "trainable_parameters": self.trainable_parameters,
            "flops": flops.get_total_flops(),
            "step_peak_bytes": peak.new_peak_bytes,
            "total_peak_bytes": total["peak_allocated_bytes"],
        }

    def seconds(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after one that is not counted: the caches belong to another process."""
        self.step()
        return [self._timed(self.step) for _ in range(steps)]

    def _timed(self, work: Callable[[], None]) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            work()
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1000


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
        print(json.dumps(said), file=answers, flush=True)
        if "error" in said:
            sys.exit(1)

    settings = json.loads(sys.argv[1])
    made = []

    def begin() -> dict:
        made.append(Trial(settings))
        return made[0].measured() if settings["measure"] else {}

    answer(begin)
    for line in sys.stdin:
        answer(lambda steps=int(line): made[0].seconds(steps))


if __name__ == "__main__":
    main()

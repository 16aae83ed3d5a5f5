"""The memory of scoring: a metric's own passes on tensors without data."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from rowsft.importance.calibration import Rehearsal
from rowsft.importance.recomputing import recomputing
from rowsft.measure.ledger import CUDA_BLOCK_BYTES, Ledger
from rowsft.methods.base import CalibratedMethod, ResolvedMethod
from rowsft.plan.without_data import without_data

if TYPE_CHECKING:
    from rowsft.plan.planned_run import PlannedRun


# Passes differ in the layers that they serve. The first block's run back through the most, and blocks are alike.
_LEAST = 2


class _Enough(Exception):
    """The passes that set the peak are through."""


def selection_peak(run: "PlannedRun", method: CalibratedMethod, base: PreTrainedModel, resolved: ResolvedMethod) -> int:
    """Bytes of tensors at the largest moment of the first passes that score `base`, on a batch of the training size."""
    # Made anew, as a run measures it: of a view, what it shows.
    batch = {
        name: torch.empty_like(value, memory_format=torch.contiguous_format) if torch.is_tensor(value) else value
        for name, value in run.batch(base).items()
    }
    # A GPU holds all of them; a CPU's run measures what it makes anew, the largest alone.
    others = [run.batch(base) for _ in range(run.settings.calibration_batches - 1)] if run.gpu else []
    with without_data(run.gpu, run.padded):
        ledger = Ledger(CUDA_BLOCK_BYTES if run.gpu else 1)
        ledger.phase = "select"
        with ledger, suppress(_Enough), recomputing(base, run.settings.gradient_checkpointing):
            ledger.hold_model(base)
            ledger.hold("base_weights", base.parameters())
            ledger.hold("temporary", (tensor for each in [batch, *others] for tensor in each.values()))
            method.scores(base, resolved, Rehearsal([batch]), progress=_first_block(base))
    return max(moment.total for moment in ledger.peaks().values())


def _first_block(base: PreTrainedModel) -> Callable[..., Iterator]:
    """Progress that ends with the passes of the first block of `base`, and the one that may reach over its end."""
    blocks = base.config.get_text_config().num_hidden_layers

    def through(items: Iterable, total: int) -> Iterator:
        most = max(_LEAST, math.ceil(total / blocks) + 1)
        for index, item in enumerate(items):
            if index == most:
                raise _Enough
            yield item

    return through

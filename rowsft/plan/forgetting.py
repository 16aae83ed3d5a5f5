"""The memory and the disk space of measuring what a run has forgotten of a general text (`trainer.forgetting`)."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rowsft.errors import UserError
from rowsft.measure.ledger import CUDA_BLOCK_BYTES, Ledger
from rowsft.methods import weight_change
from rowsft.models.capacity import check_length
from rowsft.models.loading import targets_of
from rowsft.plan.autocast import autocast, fake_device
from rowsft.plan.without_data import without_data
from rowsft.tasks import Size
from rowsft.tasks.general_text import GeneralText, named_by

if TYPE_CHECKING:
    from rowsft.plan.planned_run import PlannedRun


@dataclass(frozen=True)
class ForgettingPlan:
    """peak_bytes: of tensors at the largest moment of both passes, without an optimizer. disk_bytes: what the run keeps
    of the weights that it trains in place until it ends, before and after training; 0 for an adapter."""

    peak_bytes: int
    disk_bytes: int


def plan_forgetting(run: "PlannedRun", base: PreTrainedModel, model: nn.Module) -> ForgettingPlan | None:
    """What both passes need with `model`, which is `base` with the method, all windows and batches being full; None
    where no text is asked for.

    Raises UserError for what a run refuses without reading the text.
    """
    text = named_by(asdict(run.settings.forgetting), run.task)
    if text is None:
        return None
    check_length(base, text.max_length, "trainer.forgetting.max_length")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    in_place = run.method.trains and not isinstance(model, PeftModel)
    copies = 2 * sum(parameter.numel() * parameter.element_size() for parameter in trained) if in_place else 0
    # Where the weights are on a CPU, what is written to disk and read back counts among its tensors.
    beside = 0 if run.gpu else copies // 2
    try:
        peak = _peak(run, model, text)
    except RuntimeError as error:
        if "swap" not in str(error):
            raise
        # torch refuses to change the type of parameters without data that autocast sees on a device.
        raise UserError(
            f"trainer.forgetting.path={text.path}: merging the adapter of method={run.method.name} cannot be planned "
            f"under trainer.autocast={run.settings.autocast}; plan with trainer.forgetting.path=null"
        ) from error
    return ForgettingPlan(peak + beside, copies)


def _peak(run: "PlannedRun", model: nn.Module, text: GeneralText) -> int:
    count = run.settings.forgetting.batch_size
    # The first window predicts all of its tokens but the one in front.
    batch = run.dummy_batch(model, text, count, Size(text.max_length, text.max_length - 1))
    # As in evaluation.
    times = 2 if run.settings.autocast else 1
    with (
        fake_device(model, run.gpu),
        # The last window of a text is shorter.
        without_data(run.gpu, padded=count > 1, results=True),
        autocast(run.settings.autocast),
    ):
        ledger = Ledger(CUDA_BLOCK_BYTES if run.gpu else 1)
        ledger.phase = "forgetting"
        with ledger:
            ledger.hold_model(model)
            ledger.hold("temporary", batch.values())
            ledger.begin()
            text.counted = torch.ones_like(batch["input_ids"], dtype=torch.bool)
            targets = targets_of(run.config.model, run.task.head)
            # What training changes in place is read from disk, layer by layer.
            tuned = nullcontext(torch.empty_like if run.method.trains else Tensor.detach)
            with (
                weight_change.untouched(model, targets, tuned) as layers,
                weight_change.watched(layers, lambda: text.counted),
            ):
                text.dry_evaluation(model, batch, times)
            text.dry_evaluation(model, batch, times)
    return max(moment.total for moment in ledger.peaks().values())

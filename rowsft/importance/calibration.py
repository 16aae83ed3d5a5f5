"""What a calibration batch weighs, and how it reaches the model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rowsft.errors import UserError

IGNORED = -100
_SHIFTED = (None, "ForCausalLM", "ForConditionalGeneration")


def batch_weights(model: nn.Module, batches: Sequence[dict]) -> list[float]:
    """Each batch's share of all labelled tokens (or examples): so weighted, mean losses add up to the overall mean.

    Raises UserError for no batches at all, and for a batch without labels.
    """
    if not batches:
        raise UserError("calibration is empty; give at least one training batch with labels (calibration=[...])")
    counts = [_labelled(model, batch, index) for index, batch in enumerate(batches)]
    return [count / sum(counts) for count in counts]


def on_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def largest_batch_tokens(batches: Sequence[dict]) -> int:
    """Padded tokens of the largest batch; its examples where there are no input ids."""
    return max(batch["input_ids" if "input_ids" in batch else "labels"].numel() for batch in batches)


def _labelled(model: nn.Module, batch: dict, index: int) -> int:
    labels = batch.get("labels")
    if labels is None:
        raise UserError(
            f"calibration batch {index} has no labels, only {', '.join(batch)}; scoring needs the model's own loss"
        )
    if labels.is_floating_point():
        count = len(labels)
    else:
        # A causal language model shifts labels inside: the first one is never predicted.
        shifted = labels.dim() > 1 and _shifts_labels(model)
        count = int((labels[..., 1:] if shifted else labels).ne(IGNORED).sum())
    if count == 0:
        raise UserError(f"calibration batch {index} has no labelled token; drop it or label its answers")
    return count


def _shifts_labels(model: nn.Module) -> bool:
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return getattr(model, "loss_type", "") in _SHIFTED and not encoder_decoder


def as_batches(calibration) -> list[dict]:
    """Any iterable of batches as a list."""
    return list(calibration or ())

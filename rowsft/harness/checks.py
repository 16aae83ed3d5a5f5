"""Whether an adapter does something, and the same thing once it is merged: asked of logits on fixed tokens."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.layers.quantised import is_packed
from rowsft.tasks.evaluating import evaluation_mode

#: Largest difference of a logit between merged and unmerged weights, as a share of the largest logit, by the type of
#: the weights: merging rounds W + dW to that type in every layer, and what follows multiplies the rounding.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SEQUENCES, _LENGTH = 4, 16


@dataclass(frozen=True)
class Checks:
    """adapter_difference: the largest difference of a logit from the base model's. merged_difference: that between
    merged and unmerged; tolerance: how large it may be. None where there is no adapter, or it cannot be merged."""

    adapter_difference: float | None = None
    merged_difference: float | None = None
    tolerance: float | None = None


def logits_of(model: nn.Module) -> Tensor:
    """Return the logits of fixed tokens from all over the vocabulary, in float32 on the CPU."""
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    places = torch.arange(_SEQUENCES * _LENGTH).reshape(_SEQUENCES, _LENGTH)
    tokens = (places * 7919 + 13) % len(embeddings)
    with evaluation_mode(model) as device:
        return model(input_ids=tokens.to(device)).logits.float().cpu()


def check(run_id: str, model: nn.Module, base: Tensor) -> Checks:
    """Return how far an adapted model is from its base, and merged from unmerged; it stays as it was, to the bit.

    base: the base model's `logits_of`. Raises UserError for an adapter that changes nothing, for logits that are not
    finite, and for merged weights that compute something else.
    """
    adapted = logits_of(model)
    if not torch.isfinite(adapted).all():
        raise UserError(f"run {run_id}: its logits are not finite (nan or inf); train again with a lower rate")
    difference = float((adapted - base).abs().max())
    if difference == 0:
        raise UserError(
            f"run {run_id}: its adapter changes no logit of the base model, so the base would be scored; expected a "
            "trained adapter: run it again (--rerun)"
        )
    if not isinstance(model, PeftModel) or _holds_quantised(model):
        return Checks(adapter_difference=difference)
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.float32]) * float(adapted.abs().max())
    merged = float((_merged_logits(model) - adapted).abs().max())
    if merged > tolerance:
        raise UserError(
            f"run {run_id}: logits of merged and unmerged weights differ by {merged:.2g}; expected {tolerance:.2g} at "
            "most; load the base in float32 (model.dtype) or save the adapter again"
        )
    return Checks(difference, merged, tolerance)


def _merged_logits(model: PeftModel) -> Tensor:
    """The logits with the adapter merged. Taking it out again rounds, so the weights are put back from copies."""
    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    kept = [{name: value.detach().cpu().clone() for name, value in layer.state_dict().items()} for layer in layers]
    model.merge_adapter()
    try:
        return logits_of(model)
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for layer, values in zip(layers, kept, strict=True):
                for name, value in layer.state_dict().items():
                    value.copy_(values[name])


def _holds_quantised(model: nn.Module) -> bool:
    return any(map(is_packed, model.parameters()))

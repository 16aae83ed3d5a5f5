"""What a calibration batch weighs, how it reaches the model, and what its loss must be."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rowsft.batch import IGNORED, device_of, on_device
from rowsft.errors import UserError
from rowsft.selection.groups import Scores

_SHIFTED = (None, "ForCausalLM", "ForConditionalGeneration")


class ScoreCache(Protocol):
    """Where scores are kept by what determines them, a JSON-able key."""

    def get(self, key: dict) -> Mapping[str, Mapping[Any, Tensor]] | None:
        """Return the scores that were put for `key`; None where there are none."""

    def put(self, key: dict, scores: Mapping[str, Mapping[Any, Tensor]]) -> None:
        """Keep `scores` for `key`."""


class Calibration(list):
    """Calibration batches whose scores are kept: a list of batches, a cache, and what identifies the batches.

    cache: see `rowsft.store.score_cache`. identity: JSON-able; all
    that determines model and batches. anew: score even where scores are kept. around: makes the context that scores
    are computed in. was_read: whether the latest scores came from the cache.
    """

    def __init__(
        self,
        batches: Iterable[Mapping],
        cache: ScoreCache,
        identity: dict,
        anew: bool = False,
        around: Callable[[], AbstractContextManager] = nullcontext,
    ):
        super().__init__(batches)
        self.cache, self.identity, self.anew, self.around = cache, identity, anew, around
        self.was_read = False

    def cached(self, request: dict, compute: Callable[[], Scores]) -> Scores:
        """Return the scores kept for `request` (JSON-able); else those of `compute()`, which are then kept."""
        key = {"of": self.identity, **request}
        scores = None if self.anew else self.cache.get(key)
        self.was_read = scores is not None
        if scores is None:
            with self.around():
                scores = compute()
            self.cache.put(key, scores)
        return scores


class Rehearsal(list):
    """Batches scored for the memory that it takes alone: two perturbations, or samples, show what hundreds would."""


def as_batches(calibration: Iterable[Mapping] | None) -> Sequence[Mapping]:
    """Return the batches as a sequence; an iterator is used up once. Raises UserError for no collection of batches."""
    if isinstance(calibration, Mapping):
        raise UserError(
            f"calibration is a single batch ({', '.join(map(str, calibration))}); expected a list of batches: "
            "calibration=[batch]"
        )
    batches = calibration if isinstance(calibration, list) else list(calibration or ())
    for index, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise UserError(
                f"calibration batch {index} is a {type(batch).__name__}; expected a dict of tensors that the model's "
                "forward accepts"
            )
    return batches


def batch_weights(model: nn.Module, batches: Sequence[Mapping]) -> list[float]:
    """Return each batch's share of all labelled tokens (or examples): so weighted, losses add up to the overall mean.

    Raises UserError for a batch without labels, or with none that counts.
    """
    counts = [sum(labelled(model, batch, index)) for index, batch in enumerate(batches)]
    return [count / sum(counts) for count in counts]


def labelled(model: nn.Module, batch: Mapping, index: int) -> list[int]:
    """Return the labelled tokens of every sample of a batch; 1 or 0 where it has one label or a vector of numbers.

    Raises UserError naming the batch (`index`) when it has no labels, no tensor of them, or none that counts.
    """
    labels = batch.get("labels")
    if labels is None:
        raise UserError(
            f"calibration batch {index} has no labels, only {', '.join(batch)}; scoring needs the model's own loss"
        )
    if not isinstance(labels, Tensor) or not labels.dim():
        kind = f"a tensor of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(
            f"calibration batch {index} has labels that are {kind}; expected a tensor with an entry or a row for "
            "every sample"
        )
    if not len(labels):
        raise UserError(f"calibration batch {index} has no sample; drop it")
    if labels.is_meta:
        # A plan's batch has no data; all its tokens count.
        counts = [labels[0].numel()] * len(labels)
    elif labels.is_floating_point():
        counts = [1] * len(labels)
    else:
        # A causal language model shifts labels inside: the first one is never predicted.
        shifted = labels.dim() > 1 and _shifts_labels(model)
        counts = (labels[..., 1:] if shifted else labels).ne(IGNORED).reshape(len(labels), -1).sum(dim=1).tolist()
    if not any(counts):
        raise UserError(f"calibration batch {index} has no labelled token; drop it or label its answers")
    return counts


def select_samples(batch: Mapping, samples: slice | Tensor) -> dict:
    """Return some samples of a batch: every tensor whose first dimension counts samples is cut, all else stays."""
    size = len(batch["labels"])
    return {
        key: value[samples] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in batch.items()
    }


def loss_of(model: nn.Module, batch: Mapping, index: int) -> Tensor:
    """Return the model's own loss on a batch. Raises UserError naming the batch (`index`) for none, or none finite."""
    loss = getattr(model(**on_device(batch, device_of(model))), "loss", None)
    if loss is None:
        raise UserError(
            f"{type(model).__name__} returns no loss for calibration batch {index}; load the model with its task head, "
            "as in AutoModelForCausalLM"
        )
    if not math.isfinite(loss.item()):
        raise UserError(
            f"calibration batch {index} has loss {loss.item()}; expected a finite number; "
            "check its labels, or load the model in float32"
        )
    return loss


def check_finite(values: Mapping[str, Tensor], index: int, quantity: str) -> None:
    """Raise UserError naming layer and batch (`index`) for a value (layer name -> scalar) that is not finite."""
    values = {name: value for name, value in values.items() if not value.is_meta}
    if values and not torch.isfinite(torch.stack([value.float() for value in values.values()])).all():
        name = next(name for name, value in values.items() if not torch.isfinite(value))
        raise UserError(
            f"calibration batch {index}: the {quantity} of layer {name} is not finite; drop the batch, or load the "
            "model in float32"
        )


def _shifts_labels(model: nn.Module) -> bool:
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return getattr(model, "loss_type", "") in _SHIFTED and not encoder_decoder

"""Which rows of a layer's input are tokens, and which are padding."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rowsft.batch import IGNORED
from rowsft.layers.matrix import LinearLayer


class TokenMasks:
    """Context manager: finds the mask that belongs to a layer's input, call `start(batch)` before each forward.

    An input of shape (batch, length, d) goes with the mask of shape (batch, length), one of (batch * length, d) with
    the same mask flattened. Of an encoder-decoder the encoder's layers, and those of the decoder that read the
    encoder's output (keys and values of cross-attention), go with `attention_mask`; the decoder's own tokens with
    `decoder_attention_mask`, or with the labels that count where there is none.
    """

    def __init__(self, model: nn.Module):
        is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        any_model: Any = model
        self._encoder: nn.Module | None = any_model.get_encoder() if is_encoder_decoder else None
        self._inside = set(self._encoder.modules()) if self._encoder is not None else set()
        self._encoded: Tensor | None = None
        self._mask: Tensor | None = None
        self._decoder_mask: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> "TokenMasks":
        if self._encoder is not None:
            self._handle = self._encoder.register_forward_hook(self._keep)
        return self

    def __exit__(self, *raised) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._encoded = None

    def start(self, batch: Mapping) -> None:
        """Take the masks of the batch that is about to run."""
        self._encoded = None
        self._mask = _boolean(batch.get("attention_mask"))
        self._decoder_mask = _boolean(batch.get("decoder_attention_mask"))
        labels = batch.get("labels")
        if self._decoder_mask is None and self._encoder is not None and labels is not None and labels.dim() == 2:
            self._decoder_mask = labels.ne(IGNORED)

    def of(self, layer: LinearLayer, inputs: Tensor) -> Tensor | None:
        """Return the mask (True at a token) of the leading dimensions of `inputs`; None where all rows count."""
        if self._encoder is None or layer in self._inside or self._reads_encoder(inputs):
            candidates = [self._mask]
        else:
            candidates = [self._decoder_mask, self._mask]
        for mask in candidates:
            if mask is None:
                continue
            if inputs.shape[:-1] == mask.shape:
                return mask
            if inputs.dim() == 2 and len(inputs) == mask.numel():
                return mask.flatten()
        return None

    def _keep(self, encoder: nn.Module, args: tuple, output) -> None:
        self._encoded = output[0]

    def _reads_encoder(self, inputs: Tensor) -> bool:
        return (
            self._encoded is not None
            and inputs.data_ptr() == self._encoded.data_ptr()
            and inputs.shape == self._encoded.shape
        )


def _boolean(mask: Tensor | None) -> Tensor | None:
    return mask.bool() if mask is not None and mask.dim() == 2 else None

"""8-bit integers scaled by a row's largest weight (Dettmers et al., LLM.int8(), arXiv 2208.07339), weights alone."""

import torch
from torch import Tensor

_LARGEST = 127.0


def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes (d_out, d_in), int8, and the largest magnitude of each row (d_out,), float32."""
    weight = weight.float()
    absmax = weight.abs().amax(1)
    # A row of zeros has codes of 0, not of nan.
    scale = torch.where(absmax > 0, _LARGEST / absmax, 0.0)
    return torch.round(weight * scale.unsqueeze(1)).to(torch.int8), absmax


def decode(codes: Tensor, absmax: Tensor) -> Tensor:
    """Return the weight that the codes stand for, float32 (d_out, d_in)."""
    return codes * absmax.unsqueeze(1) * (1 / _LARGEST)


def quantised(weight: Tensor) -> Tensor:
    """Return `weight` after encoding and decoding, float32."""
    return decode(*encode(weight))

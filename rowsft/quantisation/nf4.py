"""4-bit NormalFloat (NF4; Dettmers et al., QLoRA, arXiv 2305.14314): a code of 16 values, scaled by a block's largest.

The reference: what bitsandbytes computes, in torch. Without QLoRA's second quantisation of the scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Consecutive weights of the flattened matrix that share a scale.
BLOCK = 64
#: The code's values as QLoRA's appendix E lists them: quantiles of a normal distribution, exact at -1, 0 and 1.
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Keeps the reciprocal of a block of zeros finite, as bitsandbytes does.
_SMALLEST_SCALE = 1e-38


@dataclass(frozen=True)
class Encoded:
    """A matrix in 4 bits. codes: (d_out, d_in), uint8 indices into `VALUES`. absmax: (blocks,), float32."""

    codes: Tensor
    absmax: Tensor


def encode(weight: Tensor) -> Encoded:
    """Return the codes and scales of `weight`, of any shape and floating-point type.

    Blocks run through the flattened weight, so they reach across rows where d_in is no multiple of `BLOCK`; the last
    one may be shorter. A value halfway between two codes takes the lower one.
    """
    blocks = _in_blocks(weight.float().flatten())
    absmax = blocks.abs().amax(1)
    # By the reciprocal, not by division: the last bit decides at a boundary, and so do bitsandbytes' kernels.
    scaled = (blocks * (1.0 / absmax.clamp(min=_SMALLEST_SCALE)).unsqueeze(1)).clamp_(-1, 1)
    values = _values(weight)
    codes = torch.bucketize(scaled, (values[:-1] + values[1:]) / 2, out_int32=True).to(torch.uint8)
    return Encoded(codes.flatten()[: weight.numel()].view(weight.shape), absmax)


def decode(encoded: Encoded) -> Tensor:
    """Return the weight that the codes stand for, float32, of their shape."""
    blocks = _in_blocks(_values(encoded.codes)[encoded.codes.flatten().int()])
    return (blocks * encoded.absmax.unsqueeze(1)).flatten()[: encoded.codes.numel()].view(encoded.codes.shape)


def quantised(weight: Tensor) -> Tensor:
    """Return `weight` after encoding and decoding, float32."""
    return decode(encode(weight))


def _values(like: Tensor) -> Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=like.device)


def _in_blocks(flat: Tensor) -> Tensor:
    missing = -len(flat) % BLOCK
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, BLOCK)

"""The quantisers by name: what they make of a weight, by which library, and the bits that they store."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rowsft.errors import UserError
from rowsft.quantisation import int8, nf4

_SCALE_BITS = 32
#: Who computes: torch, as the reference, or bitsandbytes.
BACKENDS = ("torch", "bitsandbytes")


@dataclass(frozen=True)
class Quantiser:
    """A way to store a weight in few bits. function: weight (d_out, d_in) -> what it is after decoding, float32.

    code_bits: of a weight. block: weights that share one 32-bit scale; None: those of a row.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    code_bits: int
    block: int | None

    def __call__(self, weight: Tensor) -> Tensor:
        return self.function(weight)

    def bits(self, shape: tuple[int, int]) -> int:
        """Return the bits that a matrix of `shape` (d_out, d_in) takes: codes and scales."""
        entries = math.prod(shape)
        scales = shape[0] if self.block is None else math.ceil(entries / self.block)
        return self.code_bits * entries + _SCALE_BITS * scales


def quantiser(name: str, backend: str = "torch") -> Quantiser:
    """Return the quantiser called `name` (nf4 or int8), computed by `backend`, one of `BACKENDS`.

    Raises UserError for an unknown name or backend, and where bitsandbytes is not installed.
    """
    known = {"nf4": (nf4.quantised, _bnb_nf4, 4, nf4.BLOCK), "int8": (int8.quantised, _bnb_int8, 8, None)}
    if name not in known:
        raise UserError(f"quantiser={name}: unknown; use one of {', '.join(known)}")
    if backend not in BACKENDS:
        raise UserError(f"backend={backend}: unknown; use one of {', '.join(BACKENDS)}")
    own, others, code_bits, block = known[name]
    if backend == "torch":
        return Quantiser(name, own, code_bits, block)
    functional = _bitsandbytes()
    return Quantiser(name, lambda weight: others(functional, weight), code_bits, block)


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            f"backend=bitsandbytes: cannot be imported ({error}); install the quant extra, pip install "
            "'rowsft[quant]', or use backend torch, which computes the same"
        ) from error
    return functional


def _bnb_nf4(functional: Any, weight: Tensor) -> Tensor:
    packed, state = functional.quantize_4bit(weight.float().contiguous(), blocksize=nf4.BLOCK, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).to(torch.float32)


def _bnb_int8(functional: Any, weight: Tensor) -> Tensor:
    codes, absmax, _ = functional.int8_vectorwise_quant(weight.float().contiguous())
    return functional.int8_vectorwise_dequant(codes, absmax)

"""The quantisers by name: what they make of a weight, by which library, and the bits that they store."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rowsft.errors import UserError
from rowsft.quantisation import int8, nf4

#: Who computes: torch, as the reference, or bitsandbytes.
BACKENDS = ("torch", "bitsandbytes")
# Scales of NF4 that share a scale of their own where they are quantised too.
_SCALES_BLOCK = 256

Shape = tuple[int, int]


@dataclass(frozen=True)
class Quantiser:
    """A way to store a weight in few bits. function: weight (d_out, d_in) -> what it is after decoding, float32.

    code_bits: of a weight. scale_bits: of all scales of a matrix of a shape (d_out, d_in).
    """

    name: str
    function: Callable[[Tensor], Tensor]
    code_bits: int
    scale_bits: Callable[[Shape], int]

    def __call__(self, weight: Tensor) -> Tensor:
        return self.function(weight)

    def bits(self, shape: Shape) -> int:
        """Return the bits that a matrix of `shape` (d_out, d_in) takes: codes and scales."""
        return self.code_bits * math.prod(shape) + self.scale_bits(shape)


def quantiser(name: str, backend: str = "torch") -> Quantiser:
    """Return the quantiser called `name`, computed by `backend`, one of `BACKENDS`.

    nf4: see `rowsft.quantisation.nf4`. nf4_double: its scales in 8 bits (QLoRA's double quantisation), by bitsandbytes
    alone. int8: see `rowsft.quantisation.int8`. Raises UserError for an unknown name or backend, and where bitsandbytes
    is needed and not installed.
    """
    if name not in _KNOWN:
        raise UserError(f"quantiser={name}: unknown; use one of {', '.join(_KNOWN)}")
    if backend not in BACKENDS:
        raise UserError(f"backend={backend}: unknown; use one of {', '.join(BACKENDS)}")
    known = _KNOWN[name]
    if backend == "torch":
        if known.own is None:
            raise UserError(f"quantiser={name}: computed by bitsandbytes alone; set backend bitsandbytes")
        return Quantiser(name, known.own, known.code_bits, known.scale_bits)
    functional = _bitsandbytes()
    return Quantiser(name, lambda weight: known.others(functional, weight), known.code_bits, known.scale_bits)


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            f"backend=bitsandbytes: cannot be imported ({error}); install the quant extra, pip install "
            "'rowsft[quant]', or use backend torch, which computes the same"
        ) from error
    return functional


def _bnb_nf4(functional: Any, weight: Tensor, double: bool = False) -> Tensor:
    packed, state = functional.quantize_4bit(
        weight.float().contiguous(), blocksize=nf4.BLOCK, compress_statistics=double, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state)


def _bnb_int8(functional: Any, weight: Tensor) -> Tensor:
    codes, absmax, _ = functional.int8_vectorwise_quant(weight.float().contiguous())
    return functional.int8_vectorwise_dequant(codes, absmax)


def _bnb_nf4_double(functional: Any, weight: Tensor) -> Tensor:
    return _bnb_nf4(functional, weight, double=True)


def _blocks(shape: Shape) -> int:
    return math.ceil(math.prod(shape) / nf4.BLOCK)


@dataclass(frozen=True)
class _Known:
    """own: in torch, None where there is none. others: by bitsandbytes."""

    own: Callable[[Tensor], Tensor] | None
    others: Callable[[Any, Tensor], Tensor]
    code_bits: int
    scale_bits: Callable[[Shape], int]


_KNOWN = {
    "nf4": _Known(nf4.quantised, _bnb_nf4, 4, lambda shape: 32 * _blocks(shape)),
    # And the mean of the scales.
    "nf4_double": _Known(
        None,
        _bnb_nf4_double,
        4,
        lambda shape: 8 * _blocks(shape) + 32 * (math.ceil(_blocks(shape) / _SCALES_BLOCK) + 1),
    ),
    "int8": _Known(int8.quantised, _bnb_int8, 8, lambda shape: 32 * shape[0]),
}

"""Numbers as a reader takes them in: bytes in MiB, seconds in ms, by the unit in their name."""

import re

from rowsft.output.quantities import NONE

#: Word of a name -> scales, largest first: (size, unit, digits).
_SCALES = {
    "bytes": ((2**20, "MiB", 2), (2**10, "KiB", 2), (1, "B", 0)),
    "seconds": ((1, "s", 2), (1e-3, "ms", 1), (1e-6, "µs", 1)),
    "joules": ((1e3, "kJ", 2), (1, "J", 2), (1e-3, "mJ", 1)),
    "flops": ((1e9, "GFLOP", 3), (1e6, "MFLOP", 3), (1, "FLOP", 0)),
}
_COUNTABLE = 1e15


def has_unit(name: str) -> bool:
    """Return whether a name says that it was measured: it holds bytes, seconds, joules or flops."""
    return _scales(name) is not None


def amounts(name: str, values: tuple[float | int | None, ...]) -> list[str]:
    """Return the values of one name in one unit, that of the largest; a dash for None."""
    size = max((abs(value) for value in values if value is not None), default=0)
    return [NONE if value is None else _in_unit(name, value, size) for value in values]


def change(name: str, value: float | int | None) -> str:
    """Return a difference with its sign, in the unit of its own size, so that a few bytes show; a dash for None."""
    return NONE if value is None else _in_unit(name, value, abs(value), "+")


def percent(value: float | None) -> str:
    """Return a change in percent with its sign; a dash for None."""
    if value is None:
        return NONE
    return f"{_float(value, 2, '+')} %" if value else "0 %"


def _in_unit(name: str, value: float | int, size: float, sign: str = "") -> str:
    scales = _scales(name)
    if scales is None:
        return _unitless(value, size, sign)
    if not size:
        return "0"
    scale, unit, digits = next((scale for scale in scales if size >= scale[0]), scales[-1])
    return f"{_decimal(value / scale, digits, sign)} {unit}"


def _unitless(value: float | int, size: float, sign: str) -> str:
    if isinstance(value, int) or not value:
        return _decimal(value, 0, sign if value else "")
    return _float(value, 1 if size >= 100 else 4, sign)


def _float(value: float, digits: int, sign: str) -> str:
    """Write with so many digits, or in scientific notation where that would say 0."""
    return _decimal(value, digits, sign) if round(value, digits) else f"{value:{sign}.1e}"


def _decimal(value: float | int, digits: int, sign: str) -> str:
    """Write with so many digits, or in scientific notation where nobody would count them."""
    return f"{value:{sign},.{digits}f}" if abs(value) < _COUNTABLE else f"{value:{sign}.3e}"


def _scales(name: str) -> tuple | None:
    words = re.split(r"[._]", name)
    # bits_per_byte is a rate, and accuracy_bytes a share: bytes say there by what lengths were divided.
    if "per" in words or "accuracy" in words:
        return None
    return next((_SCALES[word] for word in words if word in _SCALES), None)

"""Numbers out of text, strictly: what a decimal point and digits say, and nothing else."""

import math
import re

# Not float(): it takes 1_000, digits of any script, nan and inf.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Training computes in float32.
_LARGEST = 3.4028234663852886e38


def number(text: str) -> float:
    """The number that `text` is (blanks around it aside). Raises ValueError saying why it is none."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
            raise ValueError("a decimal comma; write a point")
        if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise ValueError("not finite")
        raise ValueError("not a number")
    value = float(text)
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError("too large for float32")
    return value

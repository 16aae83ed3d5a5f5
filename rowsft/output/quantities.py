"""Numbers and values as a reader sees them: one way to write a size, a number that may be missing, and a setting."""

import json

MIB = 2**20
#: Stands where nothing was measured.
NONE = "–"


def number(value: float | None, form: str, unit: str = "", scale: float = 1) -> str:
    """Return `value` times `scale` in the format `form` with its unit, or a dash for None."""
    return NONE if value is None else f"{value * scale if scale != 1 else value:{form}}{unit}"


def count(number: float) -> str:
    """Return a large number in three digits, 80k or 1.28M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number:.3g}') / size:g}{letter}"
    return f"{number:g}"


def mib(size: float | None, form: str = ",.1f") -> str:
    """Return a number of bytes in MiB, without the unit, or a dash for None."""
    return number(size, form, scale=1 / MIB)


def duration(seconds: float | None) -> str:
    """Return seconds as a clock shows them, 0:07 or 1:02:09, or a dash for None."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def text(value: object) -> str:
    """Return a setting's value as it is typed, different values in different words: 0.001, null, true."""
    if isinstance(value, float):
        brief = f"{value:g}"
        return brief if float(brief) == value else repr(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)

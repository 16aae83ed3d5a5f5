"""What a method is called and how it is shown: stated by its class, kept in every record, read by the report.

Imports no torch, as the report must not.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from rowsft.errors import UserError

#: The order of methods that state none: after all others, by name.
LAST = 100
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_MARKERS = ".,ov^<>12348spP*hH+xXDd|_"


@dataclass(frozen=True)
class MethodInfo:
    """Metadata of a method.

    name: what settings and records call it. title: its name in tables and pictures. order: its place in tables, the
    least first. colour: "#rrggbb", None for any that is free. marker: matplotlib's letter for a point. budgeted:
    whether a budget applies. trains: whether anything is trained, as the method itself says. sizes: its own settings of
    its size, which win over the budget. adapter_prefix: what the names of its PEFT parameters begin with.

    Raises UserError for a colour or marker that no picture can show.
    """

    name: str
    title: str
    order: int = LAST
    colour: str | None = None
    marker: str = "o"
    budgeted: bool = True
    trains: bool = True
    sizes: tuple[str, ...] = ()
    adapter_prefix: str | None = None

    def __post_init__(self) -> None:
        if self.colour is not None and not _COLOUR.fullmatch(self.colour):
            raise UserError(f"colour={self.colour!r} of method {self.name}: must be written as #rrggbb")
        if len(self.marker) != 1 or self.marker not in _MARKERS:
            raise UserError(f"marker={self.marker!r} of method {self.name}: must be one of {' '.join(_MARKERS)}")

    @property
    def place(self) -> tuple[int, str]:
        """Sort key of methods in tables."""
        return self.order, self.name


@runtime_checkable
class Described(Protocol):
    """A method that states its metadata. Others are shown by their name."""

    @property
    def info(self) -> MethodInfo: ...


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def trains(self) -> bool: ...


def info_of(method: _Named) -> MethodInfo:
    """Return the metadata of a method, under the name that its settings give it.

    A method under another name than its class's own (method.name=mine) is shown by that name, in a colour of its own.
    """
    info = method.info if isinstance(method, Described) else MethodInfo(method.name, method.name)
    if info.name != method.name:
        info = replace(info, name=method.name, title=method.name, order=LAST, colour=None)
    return replace(info, trains=method.trains)


def to_record(info: MethodInfo) -> dict[str, Any]:
    """Return the metadata as a record keeps it."""
    return asdict(info)


def from_record(name: str, recorded: object) -> MethodInfo:
    """Return the metadata of the method called `name` from what its record keeps.

    recorded: as `to_record` made it; None in records from before it was kept. What is damaged counts as absent.
    """
    try:
        return replace(_reader().validate_python(recorded), name=name)
    except ValidationError:
        return _EARLIER.get(name) or MethodInfo(name, name, sizes=_EARLIER_SIZES)


@cache
def _reader() -> TypeAdapter[MethodInfo]:
    return TypeAdapter(MethodInfo)


_EARLIER_SIZES = ("rows", "ratio", "r")
#: The methods there were when records did not keep their metadata.
_EARLIER: Mapping[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo("none", "no training", 0, "#7f7f7f", "x", budgeted=False, trains=False),
        MethodInfo("head", "head only", 10, "#7f7f7f", "P", budgeted=False),
        MethodInfo("row_sft", "row-SFT", 20, "#D55E00", "o", sizes=_EARLIER_SIZES),
        MethodInfo("lora", "LoRA", 30, "#0072B2", "s", sizes=_EARLIER_SIZES),
        MethodInfo("dora", "DoRA", 40, "#56B4E9", "D", sizes=_EARLIER_SIZES),
        MethodInfo("shira", "SHiRA", 50, "#CC79A7", "v", sizes=_EARLIER_SIZES),
        MethodInfo("full", "full fine-tuning", 60, "#009E73", "^", budgeted=False),
    )
}

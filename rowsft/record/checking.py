"""Reading the JSON of a record: checked, with what is wrong said by its place, and made into parts."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rowsft.errors import shortened
from rowsft.record.configuration import Config
from rowsft.record.parts import Attempt, RecordFile


def read(raw: object) -> RecordFile:
    """Return the parts of a record. Raises ValueError with the first faults: place, value, what was expected."""
    return _made(RecordFile, raw)


def read_attempt(raw: object) -> Attempt:
    """Return the parts of one attempt; see `read`."""
    return _made(Attempt, raw)


def config_faults(config: Mapping) -> str | None:
    """Return what is wrong with a resolved configuration before a run is recorded under it; None when nothing is."""
    try:
        _made(Config, config)
    except ValueError as error:
        return str(error)
    return None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _made(kind: Any, raw: object) -> Any:
    try:
        return _adapter(kind).validate_python(raw)
    except ValidationError as error:
        faults: dict[str, list[dict[str, Any]]] = {}
        for fault in error.errors(include_url=False, include_context=False):
            faults.setdefault(_place(raw, fault), []).append(dict(fault))
    # A number may be whole or not: of the two complaints the second says what was expected.
    words = [
        _words(place, min(several, key=lambda fault: fault["type"].startswith("int")))
        for place, several in faults.items()
    ]
    raise ValueError("; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else ""))


def _place(raw: object, fault: Mapping[str, Any]) -> str:
    """The path of a value, without the names of the alternatives that pydantic tried for it."""
    walked = ""
    for step in fault["loc"]:
        if isinstance(raw, list) and isinstance(step, int):
            walked, raw = f"{walked}[{step}]", raw[step]
        elif isinstance(raw, dict) and (step in raw or fault["type"] == "missing"):
            walked, raw = f"{walked}.{step}" if walked else str(step), raw.get(step)
        else:
            break
    return walked or "the record"


def _words(place: str, fault: dict[str, Any]) -> str:
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] in ("less_than_equal", "greater_than_equal"):
        return f"{place} is {_shown(fault['input'])}, expected a number of moderate size"
    expected = fault["msg"].removeprefix("Input should be ").replace("dictionary", "mapping").replace("string", "text")
    return f"{place} is {_shown(fault['input'])}, expected {expected}"


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of many digits"
    return shortened(json.dumps(value, ensure_ascii=False, default=repr))

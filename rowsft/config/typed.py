"""Values checked against type hints: settings from a command line, before anything reads them."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rowsft import renamed
from rowsft.errors import UserError, shortened

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Integers beyond this cannot be held by the tensors and the files that they end up in.
LARGEST = 2**63 - 1

_T = TypeVar("_T")
_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}


def plain(config: "DictConfig", resolve: bool = True) -> dict[str, Any]:
    """The configuration as plain data."""
    # Late: values are checked on machines without Hydra, too.
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def read(kind: Callable[..., _T], values: Mapping[str, Any], group: str, page: str) -> _T:
    """The dataclass `kind` made of `values`, the settings of `group` ("" for the root), each of its field's type.

    Raises UserError for a key that is unknown or missing, and for a value of another type, naming the key. `page` is
    where the keys are explained.
    """
    hints = _hints(kind)
    for key in values:
        if key not in hints:
            raise unknown(key, hints, group, page)
    # A record of an older version lacks later keys; the command that makes its run again takes them out.
    missing = [key for key in hints if key not in values and key not in _defaults(kind)]
    if missing:
        raise UserError(f"{_full(group, missing[0])}: has no value; give it one (the keys are explained in {page})")
    for key, value in values.items():
        check(_full(group, key), value, hints[key], page)
    whole = {key: float(value) if _is_float(hints[key], value) else value for key, value in values.items()}
    return kind(**whole)


def unknown(key: str, known: Iterable[str], group: str, page: str) -> UserError:
    """The error for a key that nothing reads, with the one that was probably meant and all that there are."""
    key, names = str(key), sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {_full(group, close[0])}? " if close else ""
    if instead := renamed.KEYS.get(_full(group, key)):
        hint = f"write {instead} instead; "
    return UserError(
        f"{_full(group, shortened(key))}: nothing reads this key; {hint}known: {', '.join(names)} (see {page})"
    )


def check(key: str, value: Any, hint: Any, page: str) -> None:
    """Raise UserError unless `value` is of the type that `hint` says. A bool is no number; nan and inf are none."""
    if fits(value, hint):
        return
    inner = next((found for one in _kinds(hint) if (found := _mapping_to(one)) is not None), None)
    if isinstance(value, Mapping) and inner is not None:
        for name, item in value.items():
            check(f"{key}.{name}", item, inner, page)
    else:
        size = " within 64 bits" if isinstance(value, int) and abs(value) > LARGEST else ""
        raise UserError(f"{key}={_shown(value)}: expected {described(hint)}{size}; see {page}")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what `hint` says; True for hints that this does not know, such as classes."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is typing.Literal:
        return value in inner
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    if hint is float:
        return fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if hint is str:
        return isinstance(value, str)
    if (kind or hint) in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, one) for item in value for one in inner[:1])
    if (kind or hint) in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(item, one) for item in value.values() for one in inner[1:2])
    return True


def described(hint: Any) -> str:
    """A hint in words: "a whole number or null"."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        # null is said last, and once.
        words = dict.fromkeys(described(one) for one in sorted(inner, key=lambda one: one is type(None)))
        return " or ".join(words)
    if kind is typing.Literal:
        return " or ".join(map(str, inner))
    if (kind or hint) in (list, tuple, Sequence):
        return "a list" + (f" of which each is {described(inner[0])}" if inner and inner[0] is not Any else "")
    if (kind or hint) in (dict, Mapping):
        return "a mapping" + (f" to {described(inner[1])}" if inner and inner[1] is not Any else "")
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _defaults(kind: type) -> frozenset[str]:
    none = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return frozenset(one.name for one in fields if one.default is not none or one.default_factory is not none)


def _is_float(hint: Any, value: Any) -> bool:
    """Whether an integer stands where a float is meant."""
    kinds = _kinds(hint)
    return isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint itself alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _mapping_to(hint: Any) -> Any:
    """What the values of a mapping must be; None where the hint is no mapping or does not say."""
    inner = typing.get_args(hint)
    return inner[1] if typing.get_origin(hint) in (dict, Mapping) and len(inner) == 2 else None


def _full(group: str, key: str) -> str:
    return f"{group}.{key}" if group else key


def _shown(value: Any) -> str:
    """A value as the command line has it: null, true, text as it stands."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shortened(value)

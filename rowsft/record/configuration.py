"""The keys of a recorded configuration that readers rely on; all others are the user's own."""

from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from rowsft.record.part import Count, Number, Text

_checked = with_config(ConfigDict(strict=True, extra="allow"))


@_checked
class MethodSettings(TypedDict, total=False):
    importance: Text | None


@_checked
class Method(MethodSettings):
    name: Text


@_checked
class Named(TypedDict, total=False):
    name: Text | None
    source: Text | None
    _target_: Text


@_checked
class Trainer(TypedDict, total=False):
    learning_rate: Number


@_checked
class Config(TypedDict, total=False):
    """The keys of a configuration that readers rely on; the others are the user's own."""

    method: Method
    model: Named
    task: Named
    budget: dict[Text, Any]
    trainer: Trainer
    seed: Count


@_checked
class Identity(TypedDict, total=False):
    method: MethodSettings
    trainer: Trainer


def as_it_is(value: Any, check: Any) -> Any:
    """Check a configuration and return it as it is, in its order."""
    check(value)
    return value

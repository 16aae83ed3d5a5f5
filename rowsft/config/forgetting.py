"""The settings of `trainer.forgetting`: the general text on which a tuned model is held against the untouched one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rowsft.config import typed
from rowsft.errors import UserError, shortened

_GROUP, _PAGE = "trainer.forgetting", "conf/trainer/default.yaml"


@dataclass
class ForgettingSettings:
    """The keys of `trainer.forgetting` in conf/trainer/default.yaml, where each is explained."""

    path: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "test"
    column: str = "text"
    documents: str = "lines"
    max_length: int = 512
    stride: int | None = None
    batch_size: int = 4
    limit: int | None = 64


def forgetting_settings(values: Any) -> ForgettingSettings:
    """Return the settings typed; null is off. Raises UserError naming the key."""
    if values is None:
        return ForgettingSettings()
    if not isinstance(values, Mapping):
        raise UserError(
            f"trainer.forgetting={shortened(values)}: expected a mapping; write trainer.forgetting.path="
            f"{shortened(values)}"
        )
    return typed.read(ForgettingSettings, values, _GROUP, _PAGE)


def check_forgetting(settings: ForgettingSettings, strategy: str | None) -> None:
    """Raise UserError for values that no text could make right, and for a model that no process has whole."""
    for name in ("batch_size", "limit", "stride"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            null = ", or null" if name != "batch_size" else ""
            raise UserError(f"{_GROUP}.{name}={value}: expected a whole number, at least 1{null}")
    if settings.max_length < 2:
        raise UserError(f"{_GROUP}.max_length={settings.max_length}: expected a whole number, at least 2 tokens")
    if settings.stride is not None and settings.stride >= settings.max_length:
        raise UserError(
            f"{_GROUP}.stride={settings.stride}: expected less than {_GROUP}.max_length={settings.max_length}, or null"
        )
    if settings.documents not in ("lines", "rows"):
        raise UserError(f"{_GROUP}.documents={shortened(settings.documents)}: expected lines or rows")
    for name in ("path", "column", "split"):
        value = getattr(settings, name)
        if value is not None and not value.strip():
            raise UserError(f"{_GROUP}.{name}={value!r}: expected text that is not empty")
    if settings.path is not None and strategy == "fsdp":
        raise UserError(
            f"{_GROUP}.path={shortened(settings.path)}: is not measured under trainer.strategy=fsdp, where no process "
            f"has the whole of a weight; set it to null, or use trainer=ddp"
        )

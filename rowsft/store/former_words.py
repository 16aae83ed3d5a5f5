"""Configurations in the words that ids are made of, those of the first runs, and in the words of today.

A row-SFT method's channel was called out, in, half or neuron, and the number of perturbations of its metric zo_taylor
was a key of its own, `draws`.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from rowsft.renamed import CHANNELS
from rowsft.store.targets import recorded

_ROW_SFT = "rowsft.row_sft.RowSFT"
_FORMER_CHANNELS = {new: old for old, new in CHANNELS.items()}
_USUAL_DRAWS = 256
_WITH_DRAWS = re.compile(r"\bzo_taylor\(\s*draws\s*=\s*(\d+)\s*\)")
_WITHOUT_DRAWS = re.compile(r"\bzo_taylor\b(?!\s*\()")


def as_recorded(config: dict) -> dict:
    """Return `config` in the words, and with the class names, that ids are made of."""
    method: Any = config.get("method")
    groups = {key: _with_former_class(group) for key, group in config.items()}
    if _is_row_sft(method) and isinstance(importance := method.get("importance"), str):
        draws = _WITH_DRAWS.search(importance)
        groups["method"]["importance"] = _WITH_DRAWS.sub("zo_taylor", importance)
        groups["method"] = {"draws": int(draws[1]) if draws else _USUAL_DRAWS} | groups["method"]
    return _with_channels(groups, _FORMER_CHANNELS)


def as_today(config: dict) -> dict:
    """Return `config`, or the identity of one, in the words of today: runs of all versions are told apart alike."""
    method: Any = config.get("method")
    if _is_row_sft(method) and isinstance(importance := method.get("importance"), str) and "draws" in method:
        draws = method["draws"]
        rest = {key: value for key, value in method.items() if key != "draws"}
        if draws == _USUAL_DRAWS:
            config = {**config, "method": rest}
        elif _WITHOUT_DRAWS.search(importance):
            named = _WITHOUT_DRAWS.sub(f"zo_taylor(draws={draws})", importance)
            config = {**config, "method": {**rest, "importance": named}}
    return _with_channels(config, CHANNELS)


def _with_former_class(group: Any) -> Any:
    if isinstance(group, dict) and "_target_" in group:
        return {**group, "_target_": recorded(group["_target_"])}
    return group


def _is_row_sft(method: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(method, dict) and recorded(method.get("_target_")) == _ROW_SFT


def _with_channels(config: dict, words: Mapping[str, str]) -> dict:
    def renamed(settings: dict) -> dict:
        channel = settings.get("channel")
        return {**settings, "channel": words.get(channel, channel)} if isinstance(channel, str) else settings

    def of_like(size: Any) -> Any:
        like = size.get("like") if isinstance(size, dict) else None
        return {**size, "like": renamed(like)} if isinstance(like, dict) and like.get("method") == "row_sft" else size

    changed = dict(config)
    if _is_row_sft(config.get("method")):
        changed["method"] = renamed(config["method"])
    if isinstance(budget := of_like(config.get("budget")), dict):
        changed["budget"] = {**budget, "default": of_like(budget["default"])} if "default" in budget else budget
    return changed

"""What a run is: the part of its config that determines its result, and the hash of that part."""

import hashlib
import json
import math

from rowsft.errors import UserError

#: Raised by one whenever a change of the code changes results: old runs then keep their ids and new ones get their own.
RESULTS_VERSION = 2

#: Top-level keys that say where a run is shown, kept, grouped or explained, never what it computes.
PRESENTATION = frozenset(
    {
        "store",
        "tracker",
        "experiment",
        "experiment_name",
        "demonstration",
        "fairness",
        "assets",
        "hydra",
    }
)

#: The same, wherever they stand: where files are cached and whether a bar is drawn.
PRESENTATION_ANYWHERE = frozenset({"cache_dir", "progress"})


def identity(config: dict) -> dict:
    """The part of a resolved config that determines the result, with `results_version`.

    An integral float reads as an integer (0.0 and 0 are one setting). Raises UserError for a value that JSON cannot
    hold or that is not finite, naming its key.
    """
    kept = {str(key): value for key, value in config.items() if str(key) not in PRESENTATION}
    return {"results_version": RESULTS_VERSION, **_plain(kept, "")}


def run_id(config: dict) -> str:
    """First 12 hex digits of the sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of `identity(config)`."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def experiment_name(config: dict) -> str | None:
    """The experiment that a config was composed for, or None."""
    return config.get("experiment_name")


def experiment_notes(config: dict) -> dict:
    """What an experiment says about itself for the report: `demonstration` and `fairness`, where set."""
    return {key: config[key] for key in ("demonstration", "fairness") if config.get(key)}


def _plain(value, where: str):
    if isinstance(value, dict):
        items = ((str(key), item) for key, item in value.items() if str(key) not in PRESENTATION_ANYWHERE)
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}={value} is not finite; a config value must be a finite number or null")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise UserError(
        f"{where}={value!r} is a {type(value).__name__}; "
        "a config value must be a number, a text, a list, a mapping or null"
    )

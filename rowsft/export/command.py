"""The command that makes a recorded run again, worked out from its configuration."""

import re
import shlex
from collections.abc import Iterator
from typing import Any, cast

from omegaconf import OmegaConf

from rowsft import config_folders
from rowsft.config.compose import compose
from rowsft.config.names import options
from rowsft.errors import UserError
from rowsft.store.identity import PRESENTATION
from rowsft.store.targets import importable

_GROUPS = ("method", "model", "task")
_BARE = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS = ("null", "none", "true", "false", "nan", "inf")


def command(config: dict[str, Any]) -> str | None:
    """`rowsft run ...` that composes `config` (a record's, resolved), as far as it determines the result.

    None where the configuration cannot be composed any more: a group file that it was made with is gone.
    """
    try:
        chosen = [f"{group}={_option(group, config[group])}" for group in _GROUPS]
        base = cast(dict, OmegaConf.to_container(compose([*chosen, f"seed={config['seed']}"])))
    except (UserError, LookupError):
        return None
    wanted = {key: value for key, value in config.items() if key not in {*PRESENTATION, "revisions"}}
    base = {key: value for key, value in base.items() if key in wanted}
    return shlex.join(["rowsft", "run", *chosen, f"seed={config['seed']}", *_changes(base, wanted, "")])


def _option(group: str, made: dict[str, Any]) -> str:
    """The file of the group that carries the same name, and class if it says one. LookupError where there is none."""
    for option in options(group):
        content = config_folders.read(config_folders.file(group, option))
        # A file that inherits from another leaves the class to that.
        wanted = made.get("_target_")
        if content.get("name") == made.get("name") and importable(content.get("_target_", wanted)) == importable(
            wanted
        ):
            return option
    raise LookupError(f"{group}: no file for {made.get('name')}")


def _changes(base: Any, wanted: Any, path: str) -> Iterator[str]:
    """The overrides that turn `base` into `wanted`."""
    if not (isinstance(base, dict) and isinstance(wanted, dict)):
        if base != wanted and not (path.endswith("._target_") and importable(base) == importable(wanted)):
            yield f"{path}={_text(wanted)}"
        return
    for key, value in wanted.items():
        inner = f"{path}.{key}" if path else key
        if key in base:
            yield from _changes(base[key], value, inner)
        else:
            yield f"+{inner}={_text(value)}"
    for key in base.keys() - wanted.keys():
        yield f"~{path}.{key}"


def _text(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not (_BARE.fullmatch(value) and value.lower() not in _WORDS):
        # Hydra takes a backslash for itself only right before a quote.
        return "'" + re.sub(r"(\\*)'", r"\1\1\'", value) + "'"
    return str(value)

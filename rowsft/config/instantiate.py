"""What a configuration describes, made: with every mistake in its keys and values said in one line."""

import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from typing_extensions import get_protocol_members

from rowsft.config import typed
from rowsft.config.settings import BUILT
from rowsft.errors import UserError, shortened
from rowsft.store.targets import importable

# Hydra's own instructions beside the target's arguments.
_INSTRUCTIONS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


def instantiated(group: str, config: DictConfig, protocol: type) -> Any:
    """Make what `config`, the group of that name, describes: an object with all members of `protocol`.

    Raises UserError for keys and values that its target does not take, and for a target that lacks a member.
    """
    check_target(group, config)
    try:
        made = instantiate(config, _target_=importable(config._target_))
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        reason = shortened(cause, 300)
        raise bad_input(error) or UserError(f"{group}: {reason}; the keys are explained in conf/{group}/") from error
    check_protocol(made, protocol, group, f"{group}._target_={config._target_}")
    return made


def check_protocol(made: object, protocol: type, noun: str, setting: str) -> None:
    """Raise UserError, with the `setting` that named its class, where an object lacks members of a protocol."""
    missing = sorted(name for name in get_protocol_members(protocol) if not _has(made, name))
    if missing:
        raise UserError(
            f"{setting}: is not a {noun}, it has no {', '.join(missing)}; the protocol is in docs/architecture.md"
        )


def check_target(group: str, config: DictConfig) -> None:
    """Raise UserError for keys that the target of a method, task or tracker does not take, and for values of other
    types than it says. Imports the target."""
    settings = typed.plain(config)
    page, name = f"conf/{group}/", settings["_target_"]
    target = _target(group, name)
    parameters, takes_more = _parameters(target)
    for key, value in settings.items():
        if key in _INSTRUCTIONS:
            continue
        if key not in parameters and not takes_more:
            if not parameters:
                raise UserError(f"{group}.{shortened(key)}: nothing reads this key; {name} takes no settings")
            raise typed.unknown(key, parameters, group, page)
        typed.check(f"{group}.{key}", value, parameters.get(key, Any), page)


def check_added(config: Mapping[str, Any], base: DictConfig | None) -> None:
    """Raise UserError for keys of method, task and tracker that their files do not have and that nothing reads.

    base: what the group choices alone compose to. A target is imported only where it may read a key that its file does
    not have.
    """
    if base is None:
        return
    for group in BUILT:
        # As plain data, for what the file leaves open (???) is a key of it too.
        own, known = config[group], typed.plain(base[group], resolve=False) if base.get(group) else {}
        if set(own) - set(known) or own["_target_"] != known.get("_target_"):
            check_target(group, own)
        for key in set(own) & set(known):
            _check_inner(own[key], known[key], f"{group}.{key}", group)


def bad_input(error: BaseException | None) -> UserError | None:
    """The UserError behind `error`: Hydra wraps what a constructor raises in an exception of its own."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__
    return None


def _check_inner(own: Any, known: Any, path: str, group: str) -> None:
    """An empty mapping in the file may be filled with any keys; one with keys has the keys that are read."""
    if not (isinstance(own, Mapping) and isinstance(known, Mapping) and known):
        return
    for key in own:
        if key not in known:
            raise typed.unknown(str(key), map(str, known), path, f"conf/{group}/")
        _check_inner(own[key], known[key], f"{path}.{key}", group)


def _target(group: str, name: str) -> Callable:
    try:
        with _quiet(logging.getLogger("hydra.utils")):
            target = get_object(importable(name))
    except Exception as error:
        cause, (module, _, member) = error.__cause__ or error, importable(name).rpartition(".")
        lacks = isinstance(cause, ModuleNotFoundError) and cause.name == importable(name) and module in sys.modules
        reason = f"{module} has no {member}" if lacks else shortened(cause, 300)
        raise UserError(
            f"{group}._target_={shortened(name)}: cannot be imported ({reason}); expected package.module.Class"
        ) from error
    if not callable(target):
        raise UserError(f"{group}._target_={shortened(name)}: is no class or function; expected package.module.Class")
    return target


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Nothing is logged inside: what is raised says it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _parameters(target: Callable) -> tuple[dict[str, Any], bool]:
    """The arguments that a target takes by name, with their type hints, and whether it takes any others."""
    try:
        signature = inspect.signature(target)
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError, NameError, AttributeError):
        # Built-in code says nothing of its arguments; calling it will.
        return {}, True
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    takes_more = inspect.Parameter.VAR_KEYWORD in kinds.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: hints.get(name, Any) for name, kind in kinds.items() if kind in named}, takes_more


def _has(made: object, name: str) -> bool:
    """Whether an object has a member. A property is not asked: a task's may read its data."""
    try:
        inspect.getattr_static(made, name)
    except AttributeError:
        return hasattr(made, name)
    return True

"""What a configuration describes, made: with every mistake in its values said in one line."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from rowsft.errors import UserError


def instantiated(group: str, config: DictConfig) -> Any:
    """What `config`, the group of that name, describes. Raises UserError for values that it does not take."""
    try:
        return instantiate(config)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise bad_input(error) or UserError(f"{group}: {reason}; the keys are explained in conf/{group}/") from error


def bad_input(error: BaseException | None) -> UserError | None:
    """The UserError behind `error`: Hydra wraps what a constructor raises in an exception of its own."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__
    return None

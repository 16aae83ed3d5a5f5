"""A configuration composed by Hydra from overrides, checked and resolved; every mistake is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rowsft import config_folders
from rowsft.config import typed
from rowsft.config.instantiate import check_added
from rowsft.config.names import check_names, opened_hydra
from rowsft.config.overrides import quoted
from rowsft.config.plugins import check_installed
from rowsft.config.settings import check_ignored_keys, check_settings
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.store.ignored import check_rules


def compose(overrides: list[str]) -> DictConfig:
    """Compose conf/config.yaml with `overrides` and resolve it. Raises UserError for a wrong group, name or key."""
    overrides = quoted(overrides)
    with opened_hydra() as hydra, _errors_in_one_line(overrides):
        base = check_names(hydra, overrides)
        config = hydra.compose_config("config", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
        config = config.copy()
        OmegaConf.set_struct(config, False)
        config.pop("hydra", None)
        _use_tuned_learning_rate(config, overrides)
        raw = typed.plain(config, resolve=False)
        OmegaConf.resolve(config)
        redact.learn(raw, typed.plain(config))
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{', '.join(missing)}: no value given; add {missing[0]}=... to the command")
        declare_ignored(config)
        check_settings(config)
        check_added(config, base)
    return config


def sweep(overrides: list[str]) -> list[int]:
    """Run every job that `overrides` span through Hydra's sweeper and launcher; returns the jobs' exit codes."""
    overrides = quoted(overrides)
    with opened_hydra() as hydra, _errors_in_one_line(overrides):
        check_names(hydra, overrides)
        shared = hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        for group in ("hydra/launcher", "hydra/sweeper"):
            check_installed(group, shared.hydra.runtime.choices[group])
        try:
            # Hydra writes the sweep's command beside the runs before it looks at the jobs.
            with _put_back(Path(shared.hydra.sweep.dir) / "multirun.yaml"):
                batches = hydra.multirun("config", lambda _: None, overrides, with_log_configuration=False)
        except OSError as error:
            raise UserError(f"store: the sweep cannot write there ({error}); choose another, store=FOLDER") from error
    # Hydra's own sweeper returns a list of batches; others (Optuna's, say) return nothing: their launcher has reported.
    return [job.return_value for batch in batches or [] for job in batch]


def composed_unresolved(overrides: list[str]) -> DictConfig:
    """What Hydra alone makes of overrides that it can read: nothing is checked, resolved or tuned yet."""
    with opened_hydra() as hydra:
        config = hydra.compose_config("config", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    return config


@contextmanager
def _errors_in_one_line(overrides: list[str]) -> Iterator[None]:
    """Turn whatever composing raises into one line: it reads nothing but what the user gave.

    Hydra and OmegaConf raise TypeError, ValueError, AttributeError and RecursionError for some of it.
    """
    try:
        yield
    except MissingConfigException as error:
        # A defaults list names it; what the command names has been looked up.
        named = str(error.missing_cfg_file)
        options = error.options or config_folders.names(named.rpartition("/")[0])
        known = ", ".join(options) or "none; a group is written from the top, /GROUP: NAME"
        command = shortened(" ".join(overrides), 200)
        raise UserError(f"{named}: no such file; known: {known}; look at {command}") from error
    except (UserError, OSError):
        raise
    except RecursionError as error:
        command = shortened(" ".join(overrides), 200)
        raise UserError(f"{command}: nested too deep, or a value that refers to itself; write it flat") from error
    except Exception as error:
        message = _one_line(error)
        # OmegaConf knows the key that could not be worked out, not the override that is to blame.
        blamed = [text for text in overrides if "${" in text] or overrides
        if blamed and not any(text in message for text in blamed):
            message = f"{message}; look at {shortened(' '.join(blamed), 200)}"
        raise UserError(message) from error


@contextmanager
def _put_back(file: Path) -> Iterator[None]:
    """Leave `file` and its folder as they were where the block refuses what it was given: no job has started then."""
    content = file.read_bytes() if file.is_file() else None
    made = next((folder for folder in reversed(file.parents) if not folder.exists()), None)
    try:
        yield
    except UserError:
        if content is not None:
            file.write_bytes(content)
        elif file.is_file():
            file.unlink()
            for folder in file.parents:
                if made is not None and folder.is_relative_to(made) and not any(folder.iterdir()):
                    folder.rmdir()
        raise


def _use_tuned_learning_rate(config: DictConfig, overrides: list[str]) -> None:
    """A tuned table decides the learning rate unless the command line does.

    The table itself is dropped: what was tuned for another method is no part of this run.
    """
    table = config.pop("tuned", None)
    given = any(text.lstrip("+").startswith("trainer.learning_rate=") for text in overrides)
    if table is None:
        return
    rates = table.get("learning_rate") if isinstance(table, DictConfig) and set(table) == {"learning_rate"} else None
    if not isinstance(rates, DictConfig):
        raise UserError(f"tuned={shortened(table)}: expected {{learning_rate: {{<method>: <rate>, ...}}}} or null")
    for name, rate in rates.items():
        typed.check(f"tuned.learning_rate.{name!s}", rate, float, "conf/config.yaml")
    name = config.get("method", {}).get("name")
    if not given and name in rates:
        config.trainer.learning_rate = rates[name]


def declare_ignored(config: DictConfig) -> None:
    """Move what the method says it ignores to the top level: it concerns the run's identity, not the method's class."""
    if "ignores" in config:
        raise UserError("ignores: nothing reads this key; a method says what it ignores in method.ignores")
    rules = config.method.pop("ignores", None) if isinstance(config.get("method"), DictConfig) else None
    config.ignores = (
        [] if rules is None else check_rules(OmegaConf.to_container(rules) if OmegaConf.is_config(rules) else rules)
    )
    check_ignored_keys(config.ignores)


def _one_line(error: Exception) -> str:
    parts = [line.strip() for source in (error, error.__cause__) if source for line in str(source).splitlines()]
    return " ".join(part for part in parts if part)

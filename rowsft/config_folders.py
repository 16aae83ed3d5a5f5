"""Where configurations are looked for: those that come with the package, and a user's own beside them.

A user's own folder is `conf/` in the working folder, or the one that --config-dir or ROWSFT_CONFIG_DIR names. It adds
to the shipped one: each file has a name of its own. Python modules beside it can be imported, for `_target_`.

In a checkout rowsft/conf and rowsft/baselines are links to the folders at its top; in a wheel they are folders.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from rowsft.errors import UserError, shortened

SHIPPED = (Path(__file__).parent / "conf").resolve()
#: Names the user's own folder; `--config-dir` sets it for the command and for the jobs that the command starts.
VARIABLE = "ROWSFT_CONFIG_DIR"
# Groups whose files set keys of other groups.
_OF_THE_WHOLE = ("experiment", "debug")


def own(named_by: str = f"{VARIABLE}=") -> Path | None:
    """The user's own folder, None where there is none. Raises UserError where one is named that is not there."""
    named = os.environ.get(VARIABLE)
    try:
        folder = Path(named or "conf").expanduser()
        if folder.is_dir():
            folder = folder.resolve()
            return None if folder == SHIPPED else folder
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long for a file, the home of nobody.
        if named:
            raise UserError(f"{named_by}{shortened(named)}: cannot be looked at ({error})") from error
    if named:
        raise UserError(f"{named_by}{shortened(named)}: no such folder; name one with groups such as method/")
    return None


def folders() -> Iterator[Path]:
    """The folders in the order in which they are searched; the user's own is looked for when it is asked for."""
    yield SHIPPED
    if (folder := own()) is not None:
        yield folder


def opened() -> Path | None:
    """The user's own folder, with the modules beside it on Python's path, after everything that is installed.

    Raises UserError for a file with the name of a shipped one and another content: which of the two is meant by a name
    would depend on the working folder.
    """
    folder = own()
    if folder is not None:
        _check_names(folder)
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))
    return folder


@contextmanager
def chosen(folder: str | None) -> Iterator[None]:
    """Search `folder` instead of the working folder's conf/ (None: leave it at that), here and in child processes."""
    if folder is None:
        yield
        return
    if not folder:
        raise UserError("--config-dir: empty; give a folder with groups such as method/")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = folder
    try:
        own("--config-dir ")
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def names(group: str) -> list[str]:
    """Every name of a group, nested ones as `sub/name`, from the files alone; without those that begin with _.

    Such a file is what others build on, by `defaults`, and is not chosen itself.
    """
    files = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders()
        for path in (folder / group).glob("**/*.yaml")
        if not is_base(path.stem)
    }
    return sorted(files)


def is_base(name: str) -> bool:
    """Whether a file of this name is there to be built on, and cannot be chosen."""
    return name.rpartition("/")[2].startswith("_")


def file(group: str, name: str) -> Path:
    """The file of `group=name`. Raises LookupError where there is none."""
    for folder in folders():
        if (path := folder / group / f"{name}.yaml").is_file():
            return path
    raise LookupError(f"{group}={name}: no such file")


def read(path: Path) -> dict:
    """The content of one file as it stands, {} where it is no mapping. Raises UserError for what is no YAML."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: {line}no YAML ({error.problem or error.context}); fix the file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({shortened(error, 200)}); fix the file") from error
    return content if isinstance(content, dict) else {}


def about(group: str, name: str) -> str:
    """The first line of comment in the file of `group=name`; "" where it begins with none.

    Raises LookupError where there is no such file.
    """
    for line in file(group, name).read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#"):
            return ""
        if text and not text.startswith("@package"):
            return text
    return ""


def check_file(group: str, name: str) -> None:
    """Raise UserError where the file of `group=name` is a user's own and cannot be a part of a configuration."""
    folder = own()
    path = folder / group / f"{name}.yaml" if folder else SHIPPED
    if not path.is_file():
        if (other := path.with_suffix(".yml")).is_file():
            raise UserError(f"{other}: rename it to {path.name}; other endings are not read")
        return
    if not read(path):
        raise UserError(f"{path}: is no mapping of keys to values; a file in {SHIPPED / group} shows what it may hold")
    if group in _OF_THE_WHOLE and "@package" not in path.read_text(encoding="utf-8"):
        raise UserError(f"{path}: sets keys of {group} alone; begin it with the line # @package _global_")


@cache
def _check_names(folder: Path) -> None:
    for path in sorted(folder.rglob("*.yaml")):
        shipped = SHIPPED / path.relative_to(folder)
        if shipped.is_file() and shipped.read_bytes() != path.read_bytes():
            raise UserError(
                f"{path}: has the name of a file that comes with rowsft, and another content; rename it, or name "
                "another folder with --config-dir"
            )

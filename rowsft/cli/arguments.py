"""What the subcommands' arguments share: one-line errors, overrides between options, paths, the store."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from rowsft import config_folders
from rowsft.cli.terminal import shown
from rowsft.errors import UserError

GROUPS = ("method", "model", "task", "budget", "trainer", "tracker", "experiment", "debug")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are; the subcommands' own parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parsed_arguments(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The arguments as `parser` reads them; options may stand between overrides, which argparse takes for the end."""
    parsed, rest = parser.parse_known_args(list(_joined(arguments)))
    if rest and (not hasattr(parsed, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _joined(arguments: list[str]) -> Iterator[str]:
    """The arguments with `--sort -KEY` as one: argparse takes a value that begins with a minus sign for an option."""
    words = iter(arguments)
    for word in words:
        key = next(words, None) if word == "--sort" else None
        if key is None:
            yield word
        elif re.fullmatch(r"-\w.*", key):
            yield f"{word}={key}"
        else:
            yield from (word, key)


def path(text: str) -> Path:
    """A path that an option names; what Path makes of no text is the folder one happens to be in."""
    if not text.strip():
        raise UserError("a path of no characters: name a file or folder, or leave the option out")
    return Path(text)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --store, for commands that read what was recorded."""
    parser.add_argument("--store", type=path, default=Path("runs"), help="the store to read (default: runs)")


def add_config_folder(parser: argparse.ArgumentParser) -> None:
    """Add --config-dir, for commands that compose a configuration. `config_folders.chosen` reads it."""
    parser.add_argument(
        "--config-dir", metavar="DIR", help="your own configurations, beside the shipped ones (default: conf)"
    )


def group_help() -> str:
    """What each group accepts, from the folders alone: composing takes longer than help may."""
    lines = ["groups:"]
    for group in GROUPS:
        lines.append(f"  {group:<11}{shown(', '.join(config_folders.names(group)))}")
    lines += ["", f"every key with its meaning: {config_folders.SHIPPED}/<group>/<name>.yaml"]
    if (own := config_folders.own()) is not None:
        lines.append(f"your own among them: {shown(own)}/<group>/<name>.yaml")
    return "\n".join(lines) + "\n"

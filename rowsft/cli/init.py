"""`rowsft init`: a folder to start from, with an example experiment and model of one's own."""

import argparse
import os
from pathlib import Path

from rowsft.cli.terminal import shown
from rowsft.errors import UserError

HELP = "write a starter folder: conf/ with an example, .gitignore, README.md"
_STARTER = Path(__file__).parents[1] / "starter"
# Git would read the file under its own name in this package, too.
_NAMES = {"gitignore": ".gitignore"}


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft init`."""
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where (default: here); may not exist yet")


def run(parsed: argparse.Namespace) -> int:
    """Write the starter's files and print their names."""
    for path in start(parsed.folder):
        print(shown(path))
    print("next: rowsft run experiment=first --show-config, in that folder")
    return 0


def start(folder: Path) -> list[Path]:
    """Write the starter's files into `folder`, which is made if need be; return them.

    Raises UserError where one of them is there already, before anything is written.
    """
    contents = {
        folder / _NAMES.get(path.name, path.relative_to(_STARTER)): path.read_bytes()
        for path in sorted(_STARTER.rglob("*"))
        if path.is_file()
    }
    for path in contents:
        if os.path.lexists(path):
            raise UserError(f"{path}: is there already and would be overwritten; rowsft init NEW_FOLDER")
    # Folders first: a file where a folder is meant is found before anything is written.
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        with path.open("xb") as file:
            file.write(content)
    return list(contents)

"""`rowsft init`: a folder to start from, with an example experiment and model of one's own."""

import os
from pathlib import Path

from rowsft.errors import UserError

_STARTER = Path(__file__).parents[1] / "starter"
# Git would read the file under its own name in this package, too.
_NAMES = {"gitignore": ".gitignore"}


def start(folder: Path) -> list[Path]:
    """Write the starter's files into `folder`, which is made if need be; the files written.

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

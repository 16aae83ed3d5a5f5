"""A general text that is there without a network: the topics of the Python Language Reference, for pydoc's help.

They come with CPython, under the PSF licence: technical English with code. Each version of Python has its own.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rowsft.errors import UserError

#: What a setting for a text calls it.
NAME = "package:python_reference"
_MODULE = "pydoc_data.topics"


def file() -> Path | None:
    """Return the file that holds the text; None where this Python comes without it."""
    try:
        spec = find_spec(_MODULE)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def topics() -> dict[str, str]:
    """Return the text of every topic by its name, sorted. Raises UserError where this Python comes without it."""
    if file() is None:
        raise UserError(f"{NAME}: this Python has no {_MODULE}; install its standard library whole, or name a file")
    return dict(sorted(import_module(_MODULE).topics.items()))

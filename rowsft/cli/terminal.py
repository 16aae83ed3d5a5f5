"""What the subcommands' output shares: safe lines, a console as wide as its reader, libraries kept quiet."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rowsft.output import escape, redact

if TYPE_CHECKING:
    from rich.console import Console


def shown(text: object) -> str:
    """A line of a terminal or a log: without secrets, without escape sequences."""
    return escape.terminal(redact.text(str(text)))


def console(width: int = 160) -> "Console":
    """A console of the terminal's width, or of `width` columns where nobody watches."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


@contextmanager
def without_warnings(category: type[Warning] = Warning, module: str = "") -> Iterator[None]:
    """Leave out what libraries warn of inside: of `category`, from modules whose names begin with `module`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=category, module=module)
        yield

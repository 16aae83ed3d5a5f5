"""The words of the suite itself: names of its settings, of their packaged values, and of a record's fields."""

import re
from functools import cache

from rowsft.config_folders import SHIPPED

_SHAPE = re.compile(r"[a-z][a-z0-9]*(?:[_.\-][a-z0-9]+)*")


def is_word(text: str) -> bool:
    """Whether the suite writes this word itself, as a method, a split, a metric, a key."""
    return _SHAPE.fullmatch(text) is not None and text in _words()


@cache
def _words() -> frozenset[str]:
    # Late, for only a password that looks like a word asks: the record's types bring a library along.
    from rowsft.record import parts

    words = {word for kind in vars(parts).values() for word in getattr(kind, "__annotations__", ())}
    for path in SHIPPED.glob("**/*.yaml"):
        words.update((path.stem, path.parent.name))
        text = path.read_text(encoding="utf-8")
        # Comments are plain English, which passwords may be made of; those of a method name its metrics.
        kept = text if path.parent.name == "method" else re.sub(r"(?:^|\s)#.*", "", text)
        # A file that others build on is no value of a setting.
        kept = re.sub(r"^ *- _\w+$", "", kept, flags=re.MULTILINE)
        words.update(re.findall(r"[a-z][\w.\-]*\w", kept))
    return frozenset(words)

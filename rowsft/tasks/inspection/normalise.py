"""Texts without what does not change their meaning: case, blanks, punctuation, compatible forms of a character."""

import sys
import unicodedata
from functools import cache


def normalised(text: str) -> str:
    """`text` in NFKC, case folded, every mark of punctuation (Unicode category P) a blank, runs of blanks one.

    Signs such as + and = stay: sums would be equal without them. "" where nothing else is in it.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.casefold().translate(_blanks()).split())


@cache
def _blanks() -> dict[int, str]:
    marks = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys(marks, " ")

"""Which of a question's answers a text names."""

import re
import unicodedata
from collections.abc import Sequence

from rowsft.errors import shortened
from rowsft.tasks.splits import fold

# What makes another number of one that stands after it or before it: 2.5, 1,234, 1/2, -4.
_BEFORE_NUMBER = re.compile(r"(?:[0-9][.,:/]|(?:^|[^0-9])[-\u2212.])$")
_AFTER_NUMBER = re.compile(r"[.,:/][0-9]")
# can't is no can; Paris's is Paris.
_CONTRACTION = re.compile(r"['\u2019](?!s\b)[^\W\d_]")


def first_named(text: str, answers: Sequence[str]) -> int | None:
    """The number, from 0, of the answer that occurs first in `text` as whole words; None where none does.

    Case is left aside, and how many blanks or line breaks part words. Of answers that begin at one place the longest
    counts. A letter (with its combining marks), digit or underscore beside an answer makes another word of it, as do a
    contraction (can't), + and # (C++), and beside a digit what goes on a number (2.5, 1,234, 1/2, -4).
    """
    folded_text = unicodedata.normalize("NFC", fold(text))
    found = []
    for number, answer in enumerate(answers):
        folded = unicodedata.normalize("NFC", fold(answer))
        at = folded_text.find(folded)
        while folded and at >= 0:
            if _stands_alone(folded_text, at, at + len(folded)):
                found.append((at, -len(folded), number))
                break
            at = folded_text.find(folded, at + 1)
    return min(found)[2] if found else None


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is whole words."""
    before, after = text[max(0, start - 2) : start], text[end : end + 3]
    if _is_of_a_word(before[-1:]) or _is_of_a_word(after[:1]) or unicodedata.category(text[start])[0] == "M":
        return False
    if text[end - 1].isalpha() and (after[:1] in ("+", "#") or _CONTRACTION.match(after)):
        return False
    if text[start].isdigit() and _BEFORE_NUMBER.search(before):
        return False
    return not (text[end - 1].isdigit() and _AFTER_NUMBER.match(after))


def _is_of_a_word(character: str) -> bool:
    return bool(character) and (character == "_" or unicodedata.category(character)[0] in "LNM")


def fault(answers: Sequence[str]) -> str | None:
    """Why no text could tell these answers apart; None where one can."""
    places: dict[str, int] = {}
    for number, answer in enumerate(answers, 1):
        folded = fold(answer)
        if not folded:
            return f"option {number} is empty: no text can name it"
        if folded in places:
            same = f"options {places[folded]} and {number} are the same words ({shortened(answer)})"
            return f"{same}: no text can name one of them alone"
        places[folded] = number
    return None

"""Which of a question's answers a text names."""

import re
from collections.abc import Sequence

from rowsft.errors import shortened
from rowsft.tasks.splits import fold


def first_named(text: str, answers: Sequence[str]) -> int | None:
    """The number, from 0, of the answer that occurs first in `text` as whole words; None where none does.

    Case is left aside, and how many blanks or line breaks part words. Of answers that begin at one place the longest
    counts; a letter, digit or underscore beside an answer makes another word of it.
    """
    folded = [fold(answer) for answer in answers]
    # The first alternative that fits is taken.
    either = "|".join(map(re.escape, sorted(folded, key=len, reverse=True)))
    found = re.search(rf"(?<!\w)(?:{either})(?!\w)", fold(text))
    return folded.index(found[0]) if found else None


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

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
# How Unicode's names of characters begin in scripts that write no blanks between words.
_UNSPACED = {"CJK", "IDEOGRAPHIC", "BOPOMOFO", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}
# What a letter of the same syllable follows (vowels of Thai and Lao, signs that stack letters in Khmer and Burmese),
# and vowels of Thai and Lao that follow one.
_BEGINS = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4\u17d2\u1039]")
_GOES_ON = re.compile("[\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6]")


def first_named(text: str, answers: Sequence[str]) -> int | None:
    """The number, from 0, of the answer that occurs first in `text` as whole words; None where none does.

    Case is left aside, and how many blanks or line breaks part words. Of answers that begin at one place the longest
    counts. A letter (with its combining marks), digit or underscore beside an answer makes another word of it, as do a
    contraction (can't), + and # (C++), and beside a digit what goes on a number (2.5, 1,234, 1/2, -4).

    Scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) do not show where words end: an
    answer is found beside any of their letters, but not inside of a number or a word in katakana, nor between a letter
    and its vowel or mark.
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
    if unicodedata.category(text[start])[0] == "M":
        return False
    if _is_of_a_word(before[-1:]) and _in_one_word(before[-1], text[start]):
        return False
    if _is_of_a_word(after[:1]) and _in_one_word(text[end - 1], after[0]):
        return False
    if text[end - 1].isalpha() and (after[:1] in ("+", "#") or _CONTRACTION.match(after)):
        return False
    if text[start].isdigit() and _BEFORE_NUMBER.search(before):
        return False
    return not (text[end - 1].isdigit() and _AFTER_NUMBER.match(after))


def _is_of_a_word(character: str) -> bool:
    return bool(character) and (character == "_" or unicodedata.category(character)[0] in "LNM")


def _in_one_word(left: str, right: str) -> bool:
    """Whether no word may end between two characters of which one at least is of a word."""
    scripts = {_script(left), _script(right)}
    if unicodedata.category(right)[0] == "M":
        return True
    if not scripts & _UNSPACED:
        # Korean writes blanks, but none between a Latin letter or a digit and an ending.
        return "HANGUL" not in scripts or len(scripts) == 1
    if _BEGINS.match(left) or _GOES_ON.match(right) or scripts == {"KATAKANA"}:
        return True
    # Chinese numerals: 20 is no 10 there, either.
    return None not in (unicodedata.numeric(left, None), unicodedata.numeric(right, None))


def _script(character: str) -> str:
    return re.split("[ -]", unicodedata.name(character, ""))[0]


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

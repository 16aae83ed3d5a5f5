r"""The final number of a text: what an answer that was reasoned out is compared by.

The number is read from the first of these places that the text has:

1. after `####`, GSM8K's own mark: the first number there (after the first mark, since a model may go on with a text of
   its own making);
2. in the last `\boxed{}`: the first number;
3. after the last `answer is` or `answer:`: the first number of its line;
4. anywhere: the last number.

In the first three an equation such as `3 + 4 = 7` or `x = 7` counts by its right side, and a place without a number
means that there is none.

A number is written with a decimal point; commas, spaces or nothing between thousands, or as 12,34,567; perhaps a
fraction (3/4, 1 1/2, `\frac{3}{4}`, ½) or a power of ten (1.5e3, 1.5 × 10^3). Currencies, percent signs and units are
passed over: 50% is 50, and 5 million is 5. A minus between two numbers is an operator or a range. Numbers of more than
60 digits are not read, nor are fractions over 0; in the first three places, nor is a number that goes on with a comma
and other digits (1,23).
"""

import re
import unicodedata
from fractions import Fraction

_MOST_DIGITS = 60

_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_ANSWER = re.compile(r"\banswer\b[*_]*\s*(?:is\b\s*:?|[:=])", re.IGNORECASE)
# What stands left of an equals sign: arithmetic without words, or one variable.
_LEFT_SIDE = re.compile(r"(?:[^A-Za-z=\n]*|[\s$]*[A-Za-z]\s*)=")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
_LATEX = {"\\times": "×", "\\cdot": "×", "\\$": "$", "\\%": "%", "{,}": ",", "\\,": " ", "\\ ": " ", "\\!": ""}
_ALIKE = {
    **dict.fromkeys(map(ord, "\u2212\u2012\u2013\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u2044\u2215"), "/"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u2002\u2003"), " "),
    **{0xFF10 + digit: str(digit) for digit in range(10)},
}
# What goes on a number that is written in no way known here: 1,23 and 1,2345.
_CUT = re.compile(r",[0-9]")
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![0-9A-Za-z_)\]}%])-)?
    (?:[$€£¥₹]\s?)?
    (?P<sign_after>(?<=[$€£¥₹])-)?
    (?<![A-Za-z_^])(?<!\^\{)(?<!\^-)
    (?:
        (?P<whole>[0-9]{1,9})\s(?P<part>[1-9][0-9]{0,3})\s?/\s?(?P<of>[1-9][0-9]{0,3})(?![0-9/])
        |
        (?P<digits>
            [0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])
            | [0-9]{1,3}(?:\ [0-9]{3})+(?![0-9]) | [0-9]+ | (?=\.[0-9])
        )
        (?P<decimals>\.[0-9]+)?
        (?:
            [eE](?P<e>[+-]?[0-9]+)(?![0-9A-Za-z])
            | \s?[×x*]\s?10\s?\^\s?\{?(?P<power>[+-]?[0-9]+)\}?
            | \s?/\s?(?P<denominator>[0-9]+)(?!\.?[0-9]|\s?/)
        )?
    )
    """,
    re.VERBOSE,
)


def final_number(text: str) -> str | None:
    """Return the number in one form for every way of writing it (18, -0.5, 1/3), or None where there is none."""
    place, last = _place(_plain(text))
    numbers = list(_NUMBER.finditer(place))
    found = numbers[-1 if last else 0] if numbers else None
    if found is None or (not last and _CUT.match(place, found.end())):
        return None
    value = _value(found)
    return None if value is None else _written(value)


def _plain(text: str) -> str:
    """The text with one way of writing minus signs, spaces and fractions, and without calculations in << >>."""
    text = _CALCULATION.sub("", text.translate(_ALIKE))
    text = "".join(_vulgar(letter) for letter in text)
    if "\\" in text or "{,}" in text:
        for latex, plain in _LATEX.items():
            text = text.replace(latex, plain)
        text = _COMMAND.sub(r"\1", text)
        text = _FRACTION.sub(lambda found: _beside(text, found.start()) + f"{found[1]}/{found[2]}", text)
    return text


def _vulgar(letter: str) -> str:
    """A letter such as ½ as ` 1/2`; any other as it is."""
    if not unicodedata.decomposition(letter).startswith("<fraction>"):
        return letter
    return " " + unicodedata.normalize("NFKC", letter).replace("\u2044", "/")


def _beside(text: str, at: int) -> str:
    """A blank where a fraction stands right after a digit, as in a mixed number."""
    return " " if text[at - 1 : at].isdigit() else ""


def _place(text: str) -> tuple[str, bool]:
    """Where the final number stands, and whether it is the last one there instead of the first."""
    before, mark, after = text.partition("####")
    if not mark:
        box = text.rfind("\\boxed{")
        answers = list(_ANSWER.finditer(text))
        if box >= 0:
            after = _braced(text[box + len("\\boxed{") :])
        elif answers:
            after = text[answers[-1].end() :]
        else:
            return text, True
    after = after.strip().partition("\n")[0]
    while left := _LEFT_SIDE.match(after):
        after = after[left.end() :]
    return after, False


def _braced(text: str) -> str:
    """The text up to the brace that closes it."""
    depth = 1
    for at, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:at]
    return text


def _value(found: re.Match) -> Fraction | None:
    """The value of a match of _NUMBER; None where it is too long."""
    if sum(letter.isdigit() for letter in found[0]) > _MOST_DIGITS:
        return None
    sign = -1 if found["sign"] or found["sign_after"] else 1
    if found["whole"]:
        part, of = int(found["part"]), int(found["of"])
        # 12 5/4 is no mixed number.
        return sign * (Fraction(found["whole"]) + Fraction(part, of)) if part < of else Fraction(part, of)
    digits = found["digits"].replace(",", "").replace(" ", "")
    value = sign * Fraction(digits + (found["decimals"] or "") or "0")
    power = int(found["e"] or found["power"] or 0)
    if abs(power) > _MOST_DIGITS:
        return None
    denominator = int(found["denominator"] or 1)
    return value * Fraction(10) ** power / denominator if denominator else None


def _written(value: Fraction) -> str:
    """A whole number or a decimal where there is one that is equal, else a fraction in lowest terms."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        times = 0
        while rest % prime == 0:
            rest, times = rest // prime, times + 1
        places = max(places, times)
    if rest > 1:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"

"""Names that users, models and error messages bring, made safe for what they are written into: one function a target.

HTML is escaped by jinja's autoescape; `visible` is its finalizer. Everything else that is written for a reader goes
through the function of its target.
"""

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Cells that a spreadsheet takes for a formula, the full-width forms of the signs too.
_FORMULA = re.compile(r"[\s]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?(?: ?%)?", re.I)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{sign: "\\" + sign for sign in "{}$&#_%"},
}
# Names that some file system or shell takes for something else.
_UNSAFE_IN_FILES = re.compile(r"[^\w.\- ]|[ .]+$|^[ .\-]+")
# Systems take 255 bytes; a text that is cut gets nine more.
_LONGEST_FILE_NAME_BYTES = 200
_LONGEST_IN_PICTURE = 72
# Categories: controls, formats (directions of writing, zero width), halves of surrogate pairs, line and paragraph ends.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    r"""The text on one line, with every character that cannot be seen written out: \n, \x1b, \u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


def terminal(text: object) -> str:
    """Text for a terminal or a log: one line, no escape sequences. Not markup: print it with `rich.text.Text`."""
    return visible(str(text))


def markdown(text: object) -> str:
    """Text in a line or table cell of Markdown: it reads as it is, and is neither HTML nor a link nor emphasis."""
    line = visible(re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", str(text).strip()))
    line = re.sub(r"([\\`*|~$])", r"\\\1", line)
    # Inside of words underscores are no emphasis, and row_sft should stay readable.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    line = re.sub(r"](?=[(\[:])", r"\\]", line)
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")
    # At the start of a line: a heading, a quotation, a list, a rule.
    return re.sub(r"^(?:([#>+=\-]+)(?=\s|$)|(\d+)([.)])(?=\s|$))", _escaped_start, line)


def code(text: object, cell: bool = False) -> str:
    """Text as inline code of Markdown; in a `cell` of a table, where a bar would end it."""
    line = visible(str(text))
    line = line.replace("|", "\\|") if cell else line
    ticks = "`" * (1 + _longest_run(line))
    space = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def code_block(text: str, language: str) -> str:
    """Lines as a block of code of Markdown."""
    fence = "`" * max(3, 1 + _longest_run(text))
    lines = [visible(line) for line in text.rstrip("\n").split("\n")]
    return "\n".join([f"{fence}{language}", *lines, fence])


def csv_cell(value: object) -> object:
    """A cell of a CSV file: numbers stay numbers; a text that a spreadsheet would run gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else text


def latex(text: object) -> str:
    """Text for LaTeX, outside of math."""
    line = visible(re.sub(r"\s*[\r\n]+\s*", " ", str(text)))
    return "".join(_LATEX.get(character, character) for character in line)


def picture(text: object) -> str:
    """Text in a picture by matplotlib, which takes what stands between dollar signs for math.

    A long one loses its middle: hundreds of characters would leave no room for the points.
    """
    line = visible(str(text))
    if len(line) > _LONGEST_IN_PICTURE:
        half = _LONGEST_IN_PICTURE // 2
        line = f"{line[:half]}…{line[-half:]}"
    return line.replace("$", r"\$")


@contextmanager
def quiet_drawing() -> Iterator[None]:
    """Without matplotlib's warnings of signs that its font has not: names in other scripts get boxes in pictures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def file_name(text: str) -> str:
    """A name for a file or folder made of any text; different texts give different names."""
    whole = _UNSAFE_IN_FILES.sub("_", text).encode()
    name = whole[:_LONGEST_FILE_NAME_BYTES].decode(errors="ignore")
    if name == text and name:
        return name
    return f"{name or '_'}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _escaped_start(match: re.Match) -> str:
    return "\\" + match[1] if match[1] else f"{match[2]}\\{match[3]}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)

"""Single overrides of a command line: quoted where Hydra's grammar needs it, read, and refused with their key."""

import re
import shlex
import typing
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from rowsft.config.settings import ModelSettings, RootSettings, TrainerSettings
from rowsft.config.typed import fits
from rowsft.errors import UserError, shortened

# What Hydra's parser raises for text that it cannot read; ValueError for integers of thousands of digits.
UNREADABLE = (HydraException, RecursionError, ValueError)
# Groups of which files may be laid one over another; every other group is one file.
_LAYERED = ("experiment", "debug")
_KEY = re.compile(r"[~+]{0,2}[\w.\-/@]+")
# Quoted text, or what stands bare between the commas and brackets of a list.
_PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,\[\]'"]+""")
_SETTINGS = {"": RootSettings, "model": ModelSettings, "trainer": TrainerSettings}
_MORE_TEXT = {
    *("method.name", "task.name", "task.prompt", "task.response", "task.labels"),
    *("task.options", "task.label", "task.delimiter", "task.pmi"),
    *(f"task.columns.{name}" for name in ("text", "pair", "label")),
    *(f"task.data.{name}" for name in ("path", "train_path", "validation_path", "test_path", "config", "revision")),
}


def quoted(overrides: list[str]) -> list[str]:
    """The overrides with quotes around values that Hydra's grammar cannot read bare: lowest(taylor), ~/data.csv.

    Each part of a comma list is taken by itself. What Hydra reads as it stands stays as it stands.
    """
    parser = _parser()
    fixed = [text if _readable(parser, text) else _with_quotes(parser, text) for text in overrides]
    return [kept_as_text(parser, text) for text in fixed]


@cache
def _parser() -> OverridesParser:
    """Hydra's parser of overrides; making one costs as much as parsing with it."""
    return OverridesParser.create()


def swept_values(setting: str) -> tuple[str, list[str]]:
    """The key and the values of "key=a,b,c", as Hydra tells them apart: [a,b],[c] are two. Neither where it cannot."""
    try:
        override = _parser().parse_override(*quoted([setting]))
    except UNREADABLE:
        return "", []
    if override.is_sweep_override():
        return override.key_or_group, list(override.sweep_string_iterator())
    return override.key_or_group, [override.get_value_element_as_str()] if override.value() not in ("", None) else []


def parse_override(parser: OverridesParser, text: str) -> Override:
    """`text` as Hydra reads it. Raises UserError naming the key, with the quotes that would make it readable."""
    try:
        # Not parse_override: what that gives cannot tell the files that glob(*) means.
        return parser.parse_overrides([text])[0]
    except RecursionError as error:
        raise UserError(f"{shortened(text)}: nested too deep; expected a flat list or mapping") from error
    except (HydraException, ValueError) as error:
        reason = " ".join(str(error).split())
        key, sign, value = text.partition("=")
        if not sign or not _KEY.fullmatch(key):
            raise UserError(
                f"{shortened(text)!r}: expected key=value or group=name, such as seed=1 or method=lora"
            ) from error
        advice = "check its brackets and quotes"
        readable = key + '="' + re.sub(r'(\\*)"', r'\1\1\\"', value) + '"'
        if len(value) <= 200 and _readable(parser, readable):
            advice = f"text with such characters needs quotes, and those quotes for the shell: {shlex.quote(readable)}"
        raise UserError(f"{key}={shortened(value)}: cannot be read ({shortened(reason, 200)}); {advice}") from error


def check_choice(choice: Override) -> None:
    """Raise UserError for a group's override that is not a choice of one file in the group's own place."""
    group, shown = choice.key_or_group, shortened(choice.input_line)
    if group.split("/")[0] == "hydra":
        return
    if choice.is_delete():
        raise UserError(f"{shown}: the group cannot be taken out; choose a file of it with {group}=NAME")
    if choice.is_add() or choice.is_force_add() or choice.package is not None:
        raise UserError(f"{shown}: a group is chosen by {group}=NAME, without + and @")
    value = choice.value()
    if value is None and not choice.is_sweep_override():
        raise UserError(f"{shown}: expected a name; leave it out for the default, or see rowsft run --help")
    if isinstance(value, list) and group not in _LAYERED:
        raise UserError(f"{shown}: expected one name; rowsft sweep {group}=a,b runs several one by one")


def kept_as_text(parser: OverridesParser, text: str) -> str:
    """The override with quotes around numbers and truth values where text is meant: store=2024, labels 1.10."""
    key, sign, value = text.partition("=")
    if not sign or key.lstrip("+") not in text_keys() or any(mark in value for mark in "(){}$"):
        return text

    def part(match: re.Match) -> str:
        bare = match[0].strip()
        is_other = match[0][0] not in "'\"" and _is_number_or_bool(parser, bare)
        return f"'{bare}'" if is_other else match[0]

    return f"{key}={_PART.sub(part, value)}"


@cache
def text_keys() -> frozenset[str]:
    """The keys whose values are text, or lists of text."""
    keys = {
        f"{group}.{name}".lstrip(".")
        for group, kind in _SETTINGS.items()
        for name, hint in typing.get_type_hints(kind).items()
        if fits("text", hint) or (fits(["text"], hint) and not fits([1], hint))
    }
    return frozenset(keys | _MORE_TEXT)


def _is_number_or_bool(parser: OverridesParser, bare: str) -> bool:
    try:
        return isinstance(parser.parse_override(f"key={bare}").value(), bool | int | float)
    except UNREADABLE:
        return False


def _with_quotes(parser: OverridesParser, text: str) -> str:
    key, sign, value = text.partition("=")
    if not sign or any(mark in value for mark in "\"'{}[]"):
        return text
    # Commas inside parentheses belong to the name: labelwise(taylor,max).
    parts = re.findall(r"(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^,()])+", value)
    fixed = ",".join(part if _readable(parser, f"{key}={part}") else f"'{part}'" for part in parts)
    return f"{key}={fixed}" if _readable(parser, f"{key}={fixed}") else text


def _readable(parser: OverridesParser, text: str) -> bool:
    try:
        parser.parse_override(text)
    except UNREADABLE:
        return False
    return True

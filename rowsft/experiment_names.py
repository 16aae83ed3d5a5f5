"""Names of experiments: text, whatever a YAML or override parser would make of it."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rowsft.errors import UserError, shortened

_OVERRIDE = re.compile(r"(\+{0,2}experiment_name=)(.*)", re.DOTALL)
_NAME = re.compile(r"[^\W_][\w .,:+@()=-]{0,99}")


def as_text(parser: OverridesParser, override: str) -> str:
    """An override of experiment_name with quotes around what reads as a number or a truth value: 1e3 stays 1e3.

    Each part of a comma list is taken by itself. Any other override stays as it is.
    """
    found = _OVERRIDE.fullmatch(override)
    if not found or any(mark in found[2] for mark in "\"'{}[]()"):
        return override
    return found[1] + ",".join(f"'{part}'" if _reads_as_number(parser, part) else part for part in found[2].split(","))


def check_experiment_name(name: object) -> None:
    """Raise UserError for what is no text that can name an experiment, a folder of reports and a column of a table."""
    if not isinstance(name, str):
        kind = "no value" if name is None else f"a {type(name).__name__}"
        raise UserError(
            f"experiment_name={shortened(name)}: expected a text, got {kind}; put it in quotes, "
            "experiment_name: 'NAME' in a YAML file, \"experiment_name='NAME'\" on the command line"
        )
    if not _NAME.fullmatch(name) or name != name.strip():
        raise UserError(
            f"experiment_name={shortened(repr(name))}: expected a letter or digit, then at most 99 of letters, "
            "digits, blanks and . , : + @ ( ) = - _"
        )


def _reads_as_number(parser: OverridesParser, text: str) -> bool:
    try:
        value = parser.parse_override(f"experiment_name={text}").value()
    except HydraException:
        return False
    return isinstance(value, bool | int | float)

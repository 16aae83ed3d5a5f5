"""Names of experiments: text, whatever a YAML or override parser would make of it."""

import re

from rowsft.errors import UserError, shortened

_NAME = re.compile(r"[^\W_][\w .,:+@()=-]{0,99}")


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

"""What the UserError says that a call ends in."""

from collections.abc import Callable

import pytest

from rowsft.errors import UserError


def refusal(call: Callable, *arguments, **keywords) -> str:
    """The message, which has to be one line."""
    with pytest.raises(UserError) as error:
        call(*arguments, **keywords)
    said = str(error.value)
    assert "\n" not in said
    return said

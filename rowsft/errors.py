"""The one exception for bad input."""


class UserError(ValueError):
    """Bad input, said in one line: the thing, the value, what was expected, what to do.

    A ValueError, as PEFT and transformers raise for bad input: whoever catches those need not know this package. Code
    of this package that catches ValueError around a call that may raise a UserError lets the latter pass first.

    The command line prints the message after ``rowsft: error:`` and exits with status 2, without a traceback.
    """


class RunHeld(UserError):
    """Another process works on the run at this moment; it may be done a little later."""


def shortened(value: object, most: int = 60) -> str:
    """A value as it stands in such a message: on one line, of more than `most` characters the middle left out."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 20]}…{text[-10:]} ({len(text):,} characters)"

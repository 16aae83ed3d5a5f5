"""The one exception for bad input, and the exit statuses that a sweep tells apart."""

# Exit status of `run` when another process works on the same run.
HELD = 3
# Exit status of a command that Ctrl-C or SIGTERM ended.
INTERRUPTED = 130


class UserError(ValueError):
    """Bad input, said in one line: the thing, the value, what was expected, what to do.

    A ValueError, as PEFT and transformers raise for bad input: whoever catches those need not know this package. Code
    of this package that catches ValueError around a call that may raise a UserError lets the latter pass first.

    The command line prints the message after ``rowsft: error:`` and exits with status 2, without a traceback.
    """


class RunHeld(UserError):
    """Another process works on the run at this moment; it may be done a little later."""


def one_line(text: str, most: int = 4000) -> str:
    """A message as one line of printable characters: others are shown escaped, the middle of an endless one left out.

    A message repeats what the user gave, and that may hold line ends and control sequences of terminals.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return shown if len(shown) <= most else f"{shown[: most - 200]} … {shown[-150:]}"


def shortened(value: object, most: int = 60) -> str:
    """A value as it stands in such a message: on one line, of more than `most` characters the middle left out."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 20]}…{text[-10:]} ({len(text):,} characters)"

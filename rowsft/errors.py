"""The one exception for bad input."""


class UserError(Exception):
    """Bad input, said in one line: the thing, the value, what was expected, what to do.

    The command line prints the message after ``rowsft: error:`` and exits with status 2, without a traceback.
    """


class RunHeld(UserError):
    """Another process works on the run at this moment; it may be done a little later."""

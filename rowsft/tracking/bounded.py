"""Work that may wait for a server, waited for no longer than so many seconds."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def bounded(work: Callable[[], Result], seconds: float) -> Result:
    """Return what `work` returns, or raise what it raises. After `seconds` it is left alone: raises TimeoutError."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    # A daemon, so that one that waits for ever does not keep the process.
    thread = Thread(target=caught, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return results[0]

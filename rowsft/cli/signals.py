"""One way to stop: Ctrl-C and a scheduler's SIGTERM."""

import os
import signal
import sys

from rowsft.errors import INTERRUPTED

#: Seconds between two looks at whether a stop has been lost.
LOOK_SECONDS = 0.5
#: Seconds that the interpreter has for ending, once the stop has arrived and all is recorded.
END_SECONDS = 10.0


def on_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with the signal's name, which the record then keeps.

    Python drops what is raised inside a weak reference's callback or a __del__, and some libraries catch everything. A
    stop that was lost so is raised again, until `arrived` is called.
    """

    def interrupt(number, frame):
        # A second signal (a sweep passes on what the terminal has sent already) must not cut the record short.
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        stop = KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: _again(stop))
            signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
        raise stop

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def arrived() -> None:
    """Look no more for a lost stop: it has arrived, and all is recorded. The process ends soon, whatever keeps it.

    A thread pool that was stopped while it started a thread leaves that one waiting for ever, and Python for it.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(INTERRUPTED))
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)


def _again(stop: KeyboardInterrupt) -> None:
    # While it is on its way (exit handlers, finally, except) it is what is being handled, or the cause of that.
    handled = sys.exception()
    while handled is not None:
        if handled is stop:
            return
        handled = handled.__context__
    raise stop

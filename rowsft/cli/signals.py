"""One way to stop: Ctrl-C, and a scheduler's SIGTERM or SIGUSR2."""

import atexit
import os
import signal
import sys
from collections.abc import Callable

from rowsft.errors import INTERRUPTED

#: Seconds between two looks at whether a stop has been lost.
LOOK_SECONDS = 0.5
#: Seconds that threads have for ending, once the stop has arrived and all is recorded.
END_SECONDS = 10.0


# SIGUSR2 is what submitit has Slurm send before a time limit or a preemption.
_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))


def on_signals(waits: Callable[[KeyboardInterrupt], float] = lambda stop: 0.0) -> None:
    """Let SIGINT, SIGTERM and SIGUSR2 raise KeyboardInterrupt with the signal's name, which the record then keeps.

    waits: for how many seconds a stop may be put off that somebody else raises before; never one by SIGINT.

    Python drops what is raised inside a weak reference's callback or a __del__, and some libraries catch everything. A
    stop that was lost so is raised again, until `arrived` is called.
    """

    def interrupt(number, frame):
        stop = KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")
        put_off = waits(stop) if number != signal.SIGINT and hasattr(signal, "setitimer") else 0.0
        # A second signal (a sweep passes on what the terminal has sent already) must not cut the record short.
        for other in _STOPS:
            if not (put_off and other == signal.SIGINT):
                signal.signal(other, signal.SIG_IGN)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: _again(stop))
            signal.setitimer(signal.ITIMER_REAL, put_off or LOOK_SECONDS, LOOK_SECONDS)
        if not put_off:
            raise stop

    for number in _STOPS:
        signal.signal(number, interrupt)


def arrived() -> None:
    """Look no more for a lost stop: it has arrived, and all is recorded. The process ends soon, whatever keeps it.

    A thread pool that was stopped while it started a thread leaves that one waiting for ever, and Python for it.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(INTERRUPTED))
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
        # Exit handlers run once the threads are done. From then on nothing waits, however long it takes, and Python
        # gives the signal its default back, which ends the process with another status.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def _again(stop: KeyboardInterrupt) -> None:
    # While it is on its way (exit handlers, finally, except) it is what is being handled, or the cause of that.
    handled = sys.exception()
    while handled is not None:
        if handled is stop:
            return
        handled = handled.__context__
    raise stop

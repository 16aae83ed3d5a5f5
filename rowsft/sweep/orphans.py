"""A job that ends when the process that started it does: on a worker nobody else would wait for it."""

import ctypes
import os
import signal
from collections.abc import MutableMapping
from contextlib import suppress

#: Set by a worker for the job that it starts.
STOP_WITH_PARENT = "ROWSFT_STOP_WITH_PARENT"
# Of Linux's prctl: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def stop_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have this process get SIGTERM when its parent dies, where the parent wants that. Linux alone can do it."""
    if environment.pop(STOP_WITH_PARENT, None) is None:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))

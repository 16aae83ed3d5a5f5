"""How a process ended, in words."""

import signal

_MEANING: dict[int, str] = {
    signal.SIGKILL: "out of memory?",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGABRT: "a fault in native code",
    signal.SIGBUS: "a full disk or a fault in native code",
    signal.SIGTERM: "stopped from outside",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGXCPU: "over its limit of CPU time",
}


def signal_of(status: int) -> int | None:
    """The signal that ended a process of this exit status, as Python (-9) or a shell (137) has it, or None."""
    number = -status if status < 0 else status - 128
    return number if number in signal.valid_signals() else None


def in_words(status: int) -> str:
    """An exit status for a reader: "killed by signal 9 (SIGKILL): out of memory?", "ended with status 1"."""
    number = signal_of(status)
    if number is None:
        return f"ended with status {status}"
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:
        # A real-time signal has no name of its own.
        name = ""
    meaning = _MEANING.get(number)
    return f"killed by signal {number}{name}" + (f": {meaning}" if meaning else "")

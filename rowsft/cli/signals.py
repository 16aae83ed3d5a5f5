"""One way to stop: Ctrl-C and a scheduler's SIGTERM."""

import signal


def on_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with the signal's name, which the record then keeps."""

    def interrupt(number, frame):
        # A second signal (a sweep passes on what the terminal has sent already) must not cut the record short.
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)

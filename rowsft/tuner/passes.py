"""The end of a backward pass: whom to tell."""

from __future__ import annotations

from typing import Protocol
from weakref import ref

from rowsft.compat.torch import backward_pass, when_backward_ends


class Listener(Protocol):
    """Somebody who waits for the end of a backward pass; held weakly."""

    def pass_ended(self) -> None: ...


#: The backward passes under way -> who waits for their end.
_listeners: dict[int, list[ref[Listener]]] = {}


def at_end(listener: Listener) -> None:
    """Call `listener.pass_ended()` when the backward pass under way has ended; outside of one nothing happens.

    A pass that dies of an error ends without a call.
    """
    number = backward_pass()
    if number < 0:
        return
    waiting = _listeners.get(number)
    if waiting is None:
        _forget_dead_passes()
        waiting = _listeners[number] = []
        when_backward_ends(lambda: _end(number))
    waiting.append(ref(listener))


def _end(number: int) -> None:
    for listener in _listeners.pop(number, ()):
        if (alive := listener()) is not None:
            alive.pass_ended()


def _forget_dead_passes() -> None:
    """Passes that died of an error, once their graphs are gone."""
    for number in [number for number, waiting in _listeners.items() if not any(each() for each in waiting)]:
        del _listeners[number]

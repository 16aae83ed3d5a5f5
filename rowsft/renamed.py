"""Settings that have been renamed: which word means the same today. Imports no torch."""

import logging
from functools import cache

#: A channel's former word -> today's.
CHANNELS = {"out": "rows", "in": "columns", "half": "both", "neuron": "neurons"}

#: A key that is gone -> what to write instead.
KEYS = {
    "method.draws": "method.importance=zo_taylor(draws=64)",
    "task.forgetting": "trainer.forgetting.path=package:python_reference",
}

log = logging.getLogger(__name__)


def channel(value: str) -> str:
    """Today's word for a channel, noting once a process where a former one is read; any other value as it is."""
    if not isinstance(value, str) or value not in CHANNELS:
        return value
    _note(f"channel={value} is now called channel={CHANNELS[value]}; both are read, write the new word")
    return CHANNELS[value]


@cache
def _note(text: str) -> None:
    log.warning(text)

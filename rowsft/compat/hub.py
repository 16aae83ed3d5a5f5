"""Whether the hub can be reached, asked beforehand: its libraries try for half a minute before they give up."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

# A plan is an answer within seconds, with a network or without.
PATIENCE_SECONDS = 3.0
# A network that is there may fail once to find a name.
_AGAIN_AFTER_SECONDS = 0.5


def without_waiting(options: dict) -> dict:
    """`options` of from_pretrained; where the hub does not answer, with what is in its cache alone."""
    return options if _asked() == "answered" else {**options, "local_files_only": True}


def where_reachable(options: dict) -> dict:
    """The same for a run, which waits for a slow hub: with what is in the cache alone where no way leads to it."""
    return {**options, "local_files_only": True} if _no_way() else options


@contextmanager
def datasets_where_reachable() -> Iterator[None]:
    """The library `datasets` likewise takes what is in its cache, or gives up, where no way leads to the hub."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or _no_way()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _no_way() -> bool:
    if _asked() != "no way":
        return False
    time.sleep(_AGAIN_AFTER_SECONDS)
    return _asked() == "no way"


def _asked() -> str:
    """answered; no way: its name is not found, or the connection is refused; silent."""
    found = ["silent"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
        except Exception as error:
            # By its name, since versions of the hub's library take it from different packages.
            found[0] = "no way" if type(error).__name__ == "ConnectError" else "silent"
            return
        found[0] = "answered"

    # In a thread of its own: looking up a name has no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return found[0]

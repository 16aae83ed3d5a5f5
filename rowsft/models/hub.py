"""Whether the hub can be reached, asked once: its library tries for half a minute before it gives up."""

import threading

from huggingface_hub import constants
from huggingface_hub.utils import get_session

# A plan is an answer within seconds, with a network or without.
PATIENCE_SECONDS = 3.0


def without_waiting(options: dict) -> dict:
    """`options` of from_pretrained; where the hub does not answer, with what is in its cache alone."""
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
        except Exception:
            # Whatever is in the way, the hub is not there.
            return
        answered.set()

    # In a thread of its own: looking up a name has no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return options if answered.is_set() else {**options, "local_files_only": True}

"""Why one of several processes ended: it writes that down for the launcher, which enters it in the run's record.

The file is torch's own (TORCHELASTIC_ERROR_FILE), which its launcher reads too.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rowsft.errors import UserError, one_line
from rowsft.output import redact
from rowsft.record import Error, State, plain
from rowsft.store.attempt import error_fields, state_of

_FILE = "TORCHELASTIC_ERROR_FILE"
_OWN = "rowsft"


@dataclass(frozen=True)
class RankFailure:
    """One process's end. `at`: seconds since 1970, as its own clock had them; `user`: bad input, said in one line."""

    state: State
    error: Error
    at: float
    user: bool


def report(error: BaseException, phase: str | None = None) -> None:
    """Write down why this process ends, unless that was done before or nobody reads it."""
    path = os.environ.get(_FILE)
    if not path or Path(path).exists():
        return
    fields = {key: text and redact.text(text) for key, text in (plain(error_fields(error, phase)) or {}).items()}
    own = {"state": state_of(error), "error": fields, "at": time.time(), "user": isinstance(error, UserError)}
    message = one_line(f"{type(error).__name__}: {redact.text(str(error))}")
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps({"message": message, "timestamp": str(int(time.time())), _OWN: own}))
    temporary.replace(path)


def read(path: Path) -> RankFailure | None:
    """Return what `report` has written; None where it is something else's."""
    own = json.loads(path.read_text()).get(_OWN)
    return own and RankFailure(own["state"], Error(**own["error"]), own["at"], own["user"])

"""What another call does with a run that ended without a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rowsft.errors import UserError, shortened

#: The states of a run that ended without a result.
UNFINISHED = ("interrupted", "failed", "oom")
Action = Literal["start", "resume", "leave"]
_FLAGS = ("resume_unfinished", "resume_errored", "restart_errored")


@dataclass(frozen=True)
class Retry:
    """The keys `retry`, `resume_unfinished`, `resume_errored` and `restart_errored` of conf/config.yaml.

    The last three mean what those of Ray Tune's Tuner.restore do: resuming goes before starting anew.
    """

    states: tuple[str, ...] = UNFINISHED
    resume_unfinished: bool = True
    resume_errored: bool = False
    restart_errored: bool = True

    def action(self, state: str) -> Action:
        """Return what becomes of a run in this state: it starts (anew), goes on from a checkpoint, or is left."""
        # Whoever asks holds the run: its process is gone.
        state = "interrupted" if state == "running" else state
        if state not in UNFINISHED:
            return "start"
        if state not in self.states:
            return "leave"
        if state == "interrupted":
            return "resume" if self.resume_unfinished else "leave"
        if self.resume_errored:
            return "resume"
        return "start" if self.restart_errored else "leave"

    def left(self, state: str) -> str:
        """Return why a run in this state is left, and how it is tried again."""
        key = f"retry={','.join(self.states)}"
        if state in self.states:
            key = "resume_unfinished=false" if state == "interrupted" else "restart_errored=false"
        advice = "retry=all" if state not in self.states else key.replace("false", "true")
        return f"left as it is: it ended as {state}, and {key}; {advice} tries it again"


def retry_policy(config: Mapping[str, Any]) -> Retry:
    """Return how the configuration wants unfinished runs treated. Raises UserError for a state that is none."""
    asked = config.get("retry", "all")
    states = [asked] if isinstance(asked, str) else list(asked)
    for state in states:
        if state not in (*UNFINISHED, "all"):
            choices = ", ".join(("all", *UNFINISHED))
            raise UserError(f"retry={shortened(asked)}: expected {choices}, or a list such as retry=[failed,oom]")
    flags = {key: bool(config[key]) for key in _FLAGS if key in config}
    return Retry(UNFINISHED if "all" in states else tuple(states), **flags)

"""Mirrors of a run on a dashboard. The store is the truth; a tracker may fail without anything being lost."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from rowsft.errors import UserError
from rowsft.output import redact
from rowsft.record import Attempt, State, plain
from rowsft.store.attempt import state_of

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = get_args(Mode)
# W&B's own default waits without end for the last upload, so a lost connection would stop a sweep; what was not sent
# by then stays on disk for `wandb sync`.
UPLOAD_SECONDS = 300.0

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where curves and final numbers are mirrored. The methods are called in this order and never raise.

    `log` is for the training loop, outside the region that a StepClock times, so that a tracker costs no step time.
    """

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        """Open one run. `run_id` is the store's id and the attempt, `<id>-<attempt>`; `group` the experiment's name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curves at optimizer step `step`, which never decreases."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the run's final numbers."""

    def finish(self, state: State) -> None:
        """Close the run in one of the store's states ("done", "failed", ...). Calls after the first do nothing."""


def final_numbers(attempt: Attempt) -> dict[str, int | float]:
    """Return the numbers that a finished attempt ends in, under flat names such as metrics/test/accuracy."""
    flat: dict[str, int | float] = {}

    def walk(name: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(f"{name}/{key}", value)
        elif isinstance(node, int | float) and not isinstance(node, bool):
            flat[name] = node

    costs = ("seconds", "step_seconds", "data_seconds", "tokens_per_second", "memory", "energy", "parameters")
    for name in ("metrics", *costs, "reference"):
        walk(name, plain(getattr(attempt, name)))
    return flat


@contextmanager
def tracking(tracker: Tracker, run_id: str, config: Mapping[str, Any], group: str) -> Iterator[Tracker]:
    """Start `tracker` and finish it whatever happens in the block.

    The state is "done", or after an exception the one that the store gives it, unless the block has called `finish`
    with a state of its own.
    """
    tracker.start(run_id, config, group)
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(state_of(error))
        raise
    tracker.finish("done")


class NullTracker:
    """Tracks nothing and never imports W&B."""

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def finish(self, state: State) -> None:
        pass


class WandbTracker:
    """One W&B run per attempt: grouped by experiment, job type = method, exit code 0 only for the state "done".

    `mode` is one of MODES, or None: what WANDB_MODE or `wandb offline` says, else online if credentials are found and
    offline if not; it never asks. `dir` is where W&B writes its `wandb` folder (None: the working directory). After an
    error of W&B one warning is logged, nothing more is sent, and the job goes on. Raises UserError for another mode.
    """

    def __init__(
        self,
        project: str = "rowsft",
        entity: str | None = None,
        mode: Mode | None = None,
        tags: Sequence[str] = (),
        dir: str | None = None,
    ):
        if mode is not None and mode not in MODES:
            raise UserError(f"tracker.mode={mode}: expected {', '.join(MODES)} or null (chosen by credentials)")
        self.project = project
        self.entity = entity
        self.mode = mode
        self.tags = tuple(tags)
        self.dir = dir
        self._run: Any = None
        self._working = False

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        with self._guard("start"):
            self._run = self._init(run_id, redact.config(config), redact.text(group))
            self._working = True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._working:
            with self._guard("log"):
                self._run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        if self._working:
            with self._guard("summary"):
                self._run.summary.update(dict(values))

    def finish(self, state: State) -> None:
        # Also after a failed log or summary: W&B shows a run that is never closed as running, later as crashed.
        run, self._run = self._run, None
        if run is not None:
            with self._guard("finish"):
                run.summary["state"] = state
            with self._guard("finish"):
                run.finish(exit_code=0 if state == "done" else 1)
        self._working = False

    def _init(self, run_id: str, config: dict[str, Any], group: str):
        import wandb

        # Before anything else of W&B runs: finding a key prints a line of its own.
        wandb.setup(wandb.Settings(silent=True))
        if self.dir is not None:
            Path(self.dir).mkdir(parents=True, exist_ok=True)
        method = _name(config.get("method"))
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode or _default_mode(),  # type: ignore[arg-type]  # W&B's settings have modes that init's type lacks
            tags=[redact.text(tag) for tag in self.tags],
            dir=self.dir,
            id=run_id,
            name=readable_name(config, run_id),
            group=group,
            job_type=method,
            config=config,
            reinit="create_new",
            # Console and system statistics would cost threads beside the timed steps; the record has its own.
            # The command line and git's remote may hold secrets; the record has the machine.
            settings=wandb.Settings(
                console="off",
                x_disable_stats=True,
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                finish_timeout=UPLOAD_SECONDS,
            ),
        )

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        # Every W&B error, because a mirror may not end a training run: the record in the store has it all.
        try:
            yield
        except Exception as error:
            if self._working or action == "start":
                _log.warning(
                    "W&B %s failed (%s: %s); the run goes on, its record is complete, its dashboard is not",
                    action,
                    type(error).__name__,
                    redact.text(str(error)).splitlines()[0] if str(error) else "no message",
                )
            self._working = False


def readable_name(config: Mapping[str, Any], run_id: str) -> str:
    """A run's name for people: method, task and model of the config, its seed, and the run id."""
    parts = [_name(config.get(group)) for group in ("method", "task", "model")]
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return " ".join([*(part for part in parts if part), run_id])


def _name(group: Any) -> str | None:
    name = group.get("name") if isinstance(group, Mapping) else group
    return str(name) if name is not None else None


def _default_mode() -> str:
    """The mode that W&B's own settings ask for; where they ask for none, online only with credentials."""
    import wandb
    from wandb.sdk.lib.wbauth import authenticate_session

    settings = wandb.setup().settings
    if settings.mode != "online" or os.environ.get("WANDB_MODE"):
        return settings.mode
    # W&B's internal reader of keys, because where it looks (variables, settings, netrc entries of several hosts) keeps
    # changing. With these arguments it neither asks, nor prints, nor uses the network. A key in a wrong form raises.
    session = authenticate_session(host=settings.base_url, source="rowsft", prompt=False, update_session=False)
    return "offline" if session is None else "online"

"""Runs on W&B: what the tracker protocol's calls become there, and how no fault of W&B reaches the job."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from rowsft.compat.wandb import analytics_off, usual_mode
from rowsft.errors import UserError
from rowsft.output import redact
from rowsft.record import Attempt, State
from rowsft.tracking import content, names, offline
from rowsft.tracking.bounded import bounded

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = get_args(Mode)

_log = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run per attempt: grouped by experiment, job type = method, exit code 0 only for the state "done".

    `mode` is one of MODES, or None: what WANDB_MODE or `wandb offline` says, else online if credentials are found and
    offline if not; it never asks. `dir` is where W&B writes its `wandb` folder (None: the working directory).
    `log_adapter` uploads the adapter as an artifact. `wait_seconds` is the longest that W&B may hold up a run at its
    start, and at its end for tables and artifacts and again for the last upload. After an error of W&B one warning is
    logged, nothing more is sent, and the job goes on. Raises UserError for other values.
    """

    def __init__(
        self,
        project: str = "rowsft",
        entity: str | None = None,
        mode: Mode | None = None,
        tags: Sequence[str] = (),
        dir: str | None = None,
        log_adapter: bool = False,
        wait_seconds: float = 60.0,
    ):
        if mode is not None and mode not in MODES:
            raise UserError(f"tracker.mode={mode}: expected {', '.join(MODES)} or null (chosen by credentials)")
        if not (math.isfinite(wait_seconds) and wait_seconds > 0):
            raise UserError(f"tracker.wait_seconds={wait_seconds}: expected a number of seconds above 0, such as 60")
        self.project = project
        self.entity = entity
        self.mode = mode
        self.tags = tuple(tags)
        self.dir = dir
        self.log_adapter = log_adapter
        self.wait_seconds = wait_seconds
        self._run: Any = None
        self.working = False
        self._points = self._step = 0
        # What a run is opened with, for it may have to be opened again.
        self._opening: dict[str, Any] = {}

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        """Open one run."""
        self._opening = {"run_id": run_id, "config": redact.config(config), "group": redact.text(group)}
        with self._guard("start"):
            self._open()
            self.working = True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curves."""
        if self.working:
            with self._guard("log"):
                self._run.log(dict(values), step=step)
                self._points += 1
                self._step = step

    def show(self, attempt: Attempt, folder: Path) -> None:
        """Add what the attempt has recorded in the run's `folder`: memory by part, selection, adapter."""
        if self.working:
            with self._guard("show"):
                curve = content.curve(attempt, folder)
                if len(curve) != self._points:
                    self._open_again(curve)
                self._show_memory(content.memory_step(attempt, folder))
                # Tables and artifacts ask the server before they are sent.
                self._bounded(lambda: self._show_files(attempt, folder))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the run's final numbers."""
        if self.working:
            with self._guard("summary"):
                self._run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: list[Any]) -> None:
        """Add a table."""
        if self.working:
            with self._guard("table"):
                self._bounded(lambda: self._log_tables({name: (columns, rows)}))

    def finish(self, state: State) -> None:
        """Close the run."""
        # Also after a failed log or summary: W&B shows a run that is never closed as running, later as crashed.
        run, self._run = self._run, None
        if run is not None:
            with self._guard("finish"):
                run.summary["state"] = state
            with self._guard("finish"):
                run.finish(exit_code=0 if state == "done" else 1)
        self.working = False

    def _open_again(self, curve: list[tuple[int, dict[str, float]]]) -> None:
        """Write the history from its beginning: a resumed attempt has only its last part in this process."""
        folder, run_id = Path(self._run.settings.wandb_dir), self._opening["run_id"]
        self._run.finish()
        offline.replace(run for run in offline.offline_runs(folder) if run.id == run_id)
        self._open()
        for step, values in curve:
            self.log(step, values)

    def _show_memory(self, events: list[dict[str, float]]) -> None:
        if events:
            self._run.define_metric(f"{names.MEMORY_STEP}*", step_metric=names.MEMORY_EVENT)
        for event in events:
            # A step of its own each: without one, the first would join the last point of the curves.
            self._step += 1
            self._run.log(event, step=self._step)

    def _show_files(self, attempt: Attempt, folder: Path) -> None:
        self._log_tables(
            {
                names.LEDGER: (names.LEDGER_COLUMNS, content.ledger_rows(attempt)),
                names.SELECTION: (names.SELECTION_COLUMNS, content.selection_rows(attempt, folder)),
            }
        )
        adapter = content.file_of(attempt, folder, "adapter") if self.log_adapter else None
        if adapter is not None:
            self._log_adapter(adapter, attempt.files["adapter"].sha256)

    def _log_tables(self, tables: Mapping[str, tuple[Sequence[str], list[Any]]]) -> None:
        import wandb

        shown = {name: wandb.Table(list(columns), rows) for name, (columns, rows) in tables.items() if rows}
        if shown:
            self._step += 1
            self._run.log(shown, step=self._step)

    def _log_adapter(self, adapter: Path, sha256: str | None) -> None:
        import wandb

        artifact = wandb.Artifact(f"adapter-{self._run.id}", "adapter", metadata={"sha256": sha256})
        # The store changes no file, so that none need be copied.
        artifact.add_dir(str(adapter), policy="immutable")
        self._run.log_artifact(artifact)

    def _open(self) -> None:
        import wandb

        analytics_off()
        # Before anything else of W&B runs: finding a key prints a line of its own.
        wandb.setup(wandb.Settings(silent=True))
        if self.dir is not None:
            Path(self.dir).mkdir(parents=True, exist_ok=True)
        run_id, config = self._opening["run_id"], self._opening["config"]
        self._points = self._step = 0
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode or usual_mode(),  # type: ignore[arg-type]  # W&B's settings have modes that init's type lacks
            tags=[redact.text(tag) for tag in self.tags],
            dir=self.dir,
            id=run_id,
            name=readable_name(config, run_id),
            group=self._opening["group"],
            job_type=_name(config.get("method")),
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
                # W&B's own defaults: 90 seconds, and without end.
                init_timeout=self.wait_seconds,
                finish_timeout=self.wait_seconds,
                finish_timeout_raises=True,
            ),
        )

    def _bounded(self, work: Callable[[], object]) -> None:
        # Offline nothing waits for a server, and a large adapter may take its time.
        work() if self._run.offline else bounded(work, self.wait_seconds)

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        # Every W&B error, because a mirror may not end a training run: the record in the store has it all.
        try:
            yield
        except Exception as error:
            if self.working or action == "start":
                _log.warning(
                    "W&B %s failed (%s: %s); the run goes on, its record is complete; "
                    "`rowsft track replay %s` writes its dashboard again from the record",
                    action,
                    type(error).__name__,
                    redact.text(str(error)).splitlines()[0] if str(error) else "no message",
                    self._opening["run_id"].rpartition("-")[0],
                )
            self.working = False


def readable_name(config: Mapping[str, Any], run_id: str) -> str:
    """A run's name for people: method, task and model of the config, its seed, and the run id."""
    parts = [_name(config.get(group)) for group in ("method", "task", "model")]
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return " ".join([*(part for part in parts if part), run_id])


def _name(group: Any) -> str | None:
    name = group.get("name") if isinstance(group, Mapping) else group
    return str(name) if name is not None else None

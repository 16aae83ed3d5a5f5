"""A sweep's jobs while it runs, as a table that a terminal draws anew: what each is at, and how far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import RLock

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rowsft.errors import UserError
from rowsft.output import escape, redact
from rowsft.output.quantities import NONE, duration, mib, number
from rowsft.store.lock import is_held
from rowsft.store.progress import Progress, read
from rowsft.sweep.jobs import SweepJob

#: Jobs that are over, or still wait, are shown up to as many; the last line counts them all.
_MOST = 4
#: Characters that all columns but the first take.
_OTHERS = 66
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
_COLOURS = {RUNNING: "cyan", DONE: "green", FAILED: "red", WAITING: "dim"}


class Board:
    """What every job of a sweep is at. Threads that run jobs tell it; whoever draws asks for the table.

    jobs: those that are to be run. of: how many the sweep has with those that are not.
    """

    def __init__(self, jobs: Sequence[SweepJob], of: int):
        self._of = of
        self._jobs = {job.number: job for job in jobs}
        self._states = dict.fromkeys(self._jobs, WAITING)
        self._progress: dict[int, Progress] = {}
        self._over: list[int] = []
        self._lock = RLock()

    def tell(self, job: SweepJob, state: str) -> None:
        """Say what a job is at: running, done or failed."""
        with self._lock:
            self._states[job.number] = state
            if state != RUNNING:
                self._over.append(job.number)

    def table(self, width: int = 120) -> Table:
        """Return the running jobs between the last that are over and the next that wait, for `width` characters."""
        with self._lock:
            running = [number for number, state in self._states.items() if state == RUNNING]
            waiting = [number for number, state in self._states.items() if state == WAITING]
            over, states = self._over[-_MOST:], dict(self._states)
        for place in running:
            if (progress := _progress_of(self._jobs[place])) is not None:
                self._progress[place] = progress
        table = Table(box=None, pad_edge=False, header_style="bold", caption=_counts(states), caption_justify="left")
        for title in ("job", "state", "phase", "step", "loss", "peak MiB", "left"):
            right = title in ("step", "loss", "peak MiB", "left")
            table.add_column(title, justify="right" if right else "left", no_wrap=True)
        for place in [*over, *running, *waiting[:_MOST]]:
            table.add_row(*self._row(place, states[place], max(8, width - _OTHERS)))
        return table

    def _row(self, place: int, state: str, most: int) -> list[Text]:
        progress = self._progress.get(place)
        label = escape.terminal(redact.text(f"[{place}/{self._of}] {self._jobs[place].label}"))
        cells = [""] * 5
        if progress is not None:
            # Of a job that is over, what it reached stays to be seen.
            cells = [
                progress.phase if state == RUNNING else "",
                f"{number(progress.step, ',')}/{number(progress.steps, ',')}" if progress.steps else NONE,
                number(progress.loss, ".4f"),
                mib(progress.peak_bytes),
                duration(progress.left_seconds) if state == RUNNING else "",
            ]
        return [
            Text(label if len(label) <= most else f"{label[: most - 1]}…"),
            Text(state, style=_COLOURS.get(state, "")),
            *(Text(escape.terminal(cell)) for cell in cells),
        ]

    @contextmanager
    def drawn(self, console: Console) -> Iterator[None]:
        """Draw the table at the foot of a terminal for the block; elsewhere do nothing."""
        if not is_watched(console):
            yield
            return
        with Live(
            get_renderable=lambda: self.table(console.width), console=console, refresh_per_second=2, transient=True
        ):
            yield


def is_watched(console: Console) -> bool:
    """Return whether somebody sees the table: colours alone, which a variable may ask for, make no terminal."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _progress_of(job: SweepJob) -> Progress | None:
    """Return how far a job is. What a killed attempt has left is not this one's: the job has yet to take the run."""
    with suppress(UserError):
        return read(job.spec.folder) if is_held(job.spec.folder) else None
    return None


def _counts(states: dict[int, str]) -> Text:
    counts = {state: list(states.values()).count(state) for state in _COLOURS}
    return Text(", ".join(f"{count} {state}" for state, count in counts.items() if count), style="dim italic")

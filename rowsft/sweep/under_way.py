"""The sweep under way: what it was told, how its jobs ended, and the lines that it says."""

from dataclasses import dataclass, field

from rich.console import Console

from rowsft.errors import shortened
from rowsft.output import escape, redact
from rowsft.sweep.jobs import JobResolver, SweepJob

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Sweep:
    """What `rowsft sweep` was told besides overrides (Hydra builds launchers from configuration alone), and how its
    jobs ended: a line for each that is not done, and by number why.

    beside: on a worker of a cluster, which runs one job, how many run at once on all workers; None elsewhere.
    """

    rerun: bool = False
    beside: int | None = None
    failed: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    checked: tuple[list[list[str]], list[SweepJob]] = ([], [])
    resolver: JobResolver = field(default_factory=lambda: JobResolver(lambda text: say(text, "dim")))


sweep = Sweep()


def begin(rerun: bool, beside: int | None = None) -> None:
    """Forget the sweep before: what follows belongs to a new one."""
    global sweep
    sweep = Sweep(rerun, beside)


def fail(job: SweepJob, of: int, why: str, then: str = "") -> None:
    sweep.failed.append(f"{title(job, of)}: {why}")
    sweep.reasons[job.number] = why
    say(f"{title(job, of)}: {why}{then}", "yellow")


def title(job: SweepJob, of: int) -> str:
    return f"[{job.number}/{of}] {shortened(job.label, 200)}"


def say(text: str, style: str) -> None:
    text = escape.terminal(redact.text(text))
    if console.is_terminal:
        console.print(text, style=style, markup=False)
    else:
        # A thousand lines through Rich take a second.
        print(text, flush=True)

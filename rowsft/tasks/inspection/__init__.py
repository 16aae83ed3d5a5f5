"""What a task's examples become before a model reads them: rendered, measured, and compared between the splits.

    inspection = inspect(task, tokenizer)
    inspection.splits["train"].longer        # examples of more than task.max_length tokens
    inspection.overlaps[0].pairs             # ids of the examples that two splits share

Reads no model. May import the rest of tasks and the output room.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rowsft.tasks import Progress, Task
from rowsft.tasks.base import SplitTask
from rowsft.tasks.inspection.labels import Labels, labels_of
from rowsft.tasks.inspection.lengths import Lengths, Quantiles, lengths_of
from rowsft.tasks.inspection.measuring import Measure, measured
from rowsft.tasks.inspection.overlap import Overlap, overlaps, repeated
from rowsft.tasks.inspection.rendering import Rendered, rendered

__all__ = ["Inspection", "Labels", "Lengths", "Overlap", "Quantiles", "Rendered", "SplitFacts", "inspect"]


@dataclass(frozen=True)
class SplitFacts:
    """Of one split: how many examples, their lengths (None where they are no tokens), and how many of them have more
    than the task's max_length tokens (None where it sets none) or repeat what an earlier one of the split asks."""

    examples: int
    lengths: Lengths | None
    longer: int | None
    repeated: int
    labels: Labels | None
    rendered: list[Rendered] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """`about`: what the task says of its data. `overlaps`: one entry for each pair of splits and kind of equality."""

    name: str
    head: str
    max_length: int | None
    evaluates_as_trained: bool
    about: dict[str, Any]
    splits: dict[str, SplitFacts]
    overlaps: list[Overlap]

    @property
    def leaks(self) -> list[Overlap]:
        """The overlaps that have examples."""
        return [overlap for overlap in self.overlaps if overlap.count]

    @property
    def is_packaged(self) -> bool:
        """Whether the data come in a package whose content this project has fixed."""
        return "package_sha256" in self.about


def inspect(
    task: Task, processor: Any, examples: int = 3, splits: Sequence[str] | None = None, progress: Progress = None
) -> Inspection:
    """Read a task's data and return what they become through `processor`.

    examples: how many of each split are rendered. splits: those of which examples are rendered (None: all). Lengths are
    those before anything is cut off. Raises UserError for data that the task refuses.
    """
    data = task.splits()
    about = task.about()
    names = about.get("classes")
    most = getattr(task, "max_length", None)
    measures = {name: measured(task, processor, rows, progress) for name, rows in data.items()}
    facts = {}
    for name, rows in data.items():
        shown = rows[:examples] if splits is None or name in splits else []
        measure = measures[name]
        facts[name] = SplitFacts(
            examples=len(rows),
            lengths=lengths_of(measure.tokens, measure.answers),
            longer=_longer(task, processor, rows, measure),
            repeated=repeated(measure),
            labels=labels_of(rows, names),
            rendered=rendered(task, processor, shown, names),
        )
    ids = {name: [row["id"] for row in rows] for name, rows in data.items()}
    return Inspection(
        name=task.name,
        head=task.head.name,
        max_length=most,
        evaluates_as_trained=task.evaluates_as_trained,
        about=about,
        splits=facts,
        overlaps=overlaps(measures, ids),
    )


def _longer(task: Task, processor: Any, rows: list[dict], measure: Measure) -> int | None:
    """How many examples have more than the task's max_length tokens, in training or in evaluation."""
    most = getattr(task, "max_length", None)
    if most is None or not len(measure.tokens):
        return None
    if not task.evaluates_as_trained and isinstance(task, SplitTask):
        # Any of several options may be too long.
        long = task.too_long(rows, processor)
        if long is not None:
            return sum(long)
    return int((measure.tokens > most).sum())

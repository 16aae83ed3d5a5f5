"""What a run shows its importance metric: batches of its training data, whose scores are kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from rowsft.batch import on_device
from rowsft.config.settings import TrainerSettings
from rowsft.importance.calibration import Calibration
from rowsft.runner import schedule
from rowsft.store.score_cache import ScoreCache


@dataclass(frozen=True)
class TrainingBatches:
    """The batches that a run trains on, in its order, padded and on its device.

    encoded: the training split in its own order. collate: examples -> batch of padded tensors.
    """

    encoded: Sequence[dict]
    collate: Callable[[list[dict]], dict]
    settings: TrainerSettings
    seed: int
    device: torch.device

    def first(self, count: int, repeat: bool = False) -> Iterator[dict]:
        """The first `count` of them; fewer where the split ends, unless it is gone through again (repeat)."""
        size = self.settings.batch_size
        needed = count * size if repeat else min(len(self.encoded), count * size)
        order = schedule.data_order(len(self.encoded), needed, self.seed)
        for first in range(0, needed, size):
            # Copies: a collator may pad the examples that it is given in place.
            examples = [dict(self.encoded[index]) for index in order[first : first + size]]
            yield on_device(self.collate(examples), self.device)

    def calibration(
        self,
        store: Path,
        config: dict,
        revision: str | None,
        anew: bool,
        warmed: Callable[[], AbstractContextManager],
        count: int | None = None,
    ) -> Calibration:
        """The first `calibration_batches`, or `count` of them; their scores are kept in `store`, unless made `anew`.

        config: the run's, resolved. revision: the base model's, as loaded. warmed: makes the context in which the
        task head is warm, entered where trainer.warm_head asks for it and there is something to score.
        """
        batches = count or self.settings.calibration_batches
        kept_by = {
            **{key: config[key] for key in ("model", "task", "revisions", "seed")},
            "loaded_revision": revision,
            "batch_size": self.settings.batch_size,
            "calibration_batches": batches,
            "device": self.device.type,
        }
        around: Callable[[], AbstractContextManager] = nullcontext
        if self.settings.warm_head:
            kept_by |= {"warm_head": self.settings.warm_head, "learning_rate": self.settings.learning_rate}
            around = warmed
        return Calibration(self.first(batches), ScoreCache(store), kept_by, anew, around)

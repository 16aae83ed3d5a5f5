"""A task of one's own on images: which corner of a picture is the bright one? Random pictures, four classes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from rowsft.tasks import Evaluation, Progress, Size
from rowsft.tasks.base import SplitTask
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.heads import Head, label_settings

IMAGE_CLASSIFICATION = Head(
    name="image_classification",
    model_class="AutoModelForImageClassification",
    processor_class="AutoImageProcessor",
    fresh=True,
)
CORNERS = ["top left", "top right", "bottom left", "bottom right"]


class BrightCorner(SplitTask):
    """`pixels`: width and height of a picture."""

    head = IMAGE_CLASSIFICATION
    primary_metric = "accuracy"
    higher_is_better = True

    def __init__(self, name: str, pixels: int, max_length: int, limits: Mapping[str, int | None] | None = None):
        super().__init__(name, max_length, limits)
        self.pixels = pixels

    def head_settings(self, num_labels: int | None = None) -> dict[str, Any]:
        """Four classes."""
        return label_settings(len(CORNERS))

    def _read(self) -> dict[str, list[dict]]:
        draw = np.random.default_rng(0)
        sizes = {"train": 64, "validation": 16, "test": 16}
        return {name: [self._example(draw, f"{name}-{i}") for i in range(size)] for name, size in sizes.items()}

    def _example(self, draw: np.random.Generator, id_: str) -> dict:
        corner, half = int(draw.integers(len(CORNERS))), self.pixels // 2
        picture = draw.integers(0, 100, (self.pixels, self.pixels, 3), dtype=np.uint8)
        top, left = half * (corner // 2), half * (corner % 2)
        picture[top : top + half, left : left + half] += 120
        return {"id": id_, "picture": picture, "label": corner}

    def _facts(self) -> dict[str, Any]:
        return {"source": "drawn", "licence": "none", "caveat": "", "sha256": {}, "classes": CORNERS}

    def encode(self, examples: list[dict], processor, /) -> list[dict]:
        """pixel_values (3, height, width) as the model's own image processor scales them."""
        pixels = processor([example["picture"] for example in examples], return_tensors="np")["pixel_values"]
        return [
            {"pixel_values": values, "labels": example["label"]}
            for values, example in zip(pixels, examples, strict=True)
        ]

    def collator(self, processor, model=None, /) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """pixel_values (batch, 3, height, width), labels (batch,)."""
        return lambda encoded: {
            "pixel_values": torch.tensor(np.stack([example["pixel_values"] for example in encoded])),
            "labels": torch.tensor([example["labels"] for example in encoded]),
        }

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors: of pictures as large as the model takes."""
        side = model.config.image_size
        return {"pixel_values": empty((count, 3, side, side), torch.float32), "labels": empty((count,))}

    @staticmethod
    def read_batch(output, batch: dict[str, Any]) -> list[list[float]]:
        """The logits of every picture of a batch."""
        return output.logits.double().cpu().tolist()

    def evaluate(
        self, model, examples: list[dict], processor, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The share of pictures whose corner was found; scores are the logits."""
        encoded = self.encode(examples, processor)
        logits = run_batches(model, encoded, self.collator(processor), batch_size, progress, self.read_batch)
        rows = [
            {"id": example["id"], "prediction": int(np.argmax(scores)), "label": example["label"], "scores": scores}
            for example, scores in zip(examples, logits, strict=True)
        ]
        return Evaluation({"accuracy": float(np.mean([row["prediction"] == row["label"] for row in rows]))}, rows)

    def reference_metrics(self, model, examples: list[dict], processor, /) -> dict[str, float]:
        """Accuracy of guessing."""
        return {"chance_accuracy": 1 / len(CORNERS)}

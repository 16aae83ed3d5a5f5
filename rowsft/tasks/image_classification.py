"""Classification of pictures by a vision transformer."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from rowsft.tasks import Size
from rowsft.tasks.base import whole_number
from rowsft.tasks.heads import IMAGE_CLASSIFICATION
from rowsft.tasks.labelled import LabelledTask
from rowsft.tasks.pictures import Labelled, Pictures


class ImageClassification(LabelledTask):
    """`data`: see Pictures. Examples are {"id", "image", "label"}, pictures opened when a batch needs them.

    image_size: every picture is resized to this many pixels a side, whatever its shape; None leaves size and cropping
    to the model's own processor. Pictures become RGB and are scaled as the processor says.
    """

    head = IMAGE_CLASSIFICATION
    is_regression = False

    def __init__(
        self,
        name: str,
        data: Mapping[str, Any],
        image_size: int | None = None,
        primary_metric: str = "accuracy",
        extra_metrics: Sequence[str] = (),
        limits: Mapping[str, int | None] | None = None,
    ):
        super().__init__(name, None, primary_metric, extra_metrics, limits)
        if image_size is not None:
            whole_number("task.image_size", image_size, 8, " pixels")
        self.image_size = image_size
        self.pictures = Pictures(data)

    @property
    def num_labels(self) -> int:
        """Number of classes (reads the data)."""
        return len(self.classes)

    @cached_property
    def _parts(self) -> tuple[dict[str, Labelled], list[str]]:
        return self.pictures.read()

    @property
    def classes(self) -> list[str]:
        """The name of every class index."""
        return self._parts[1]

    def _read(self) -> dict[str, list[dict]]:
        return {
            name: [
                {"id": id_, "image": picture, "label": label}
                for id_, picture, label in zip(part.ids, part.pictures, part.labels, strict=True)
            ]
            for name, part in self._parts[0].items()
        }

    def _facts(self) -> dict[str, Any]:
        return {**self.pictures.facts(), "classes": self.classes}

    def data_at_hand(self) -> bool:
        """Whether the pictures lie in a folder here."""
        return self.pictures.at_hand()

    def encode(self, examples: list[dict], processor, /) -> list[dict]:
        """The picture, not yet opened, and its label: as pixels, those of a data set would not fit into memory."""
        return [{"image": example["image"], "labels": example["label"]} for example in examples]

    def collator(self, processor, model=None, /) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """pixel_values (batch, 3, height, width) float32, labels (batch,)."""
        size = {} if self.image_size is None else self._resizing

        def collate(encoded: list[dict]) -> dict[str, torch.Tensor]:
            pixels = processor([one["image"].opened() for one in encoded], return_tensors="pt", **size)["pixel_values"]
            # numpy's memory is none that torch counts: the batch would be missing from the peaks on a CPU.
            return {"pixel_values": pixels.clone(), "labels": torch.tensor([one["labels"] for one in encoded])}

        return collate

    @property
    def _resizing(self) -> dict[str, Any]:
        side = {"height": self.image_size, "width": self.image_size}
        return {"do_resize": True, "size": side, "do_center_crop": False}

    def size(self, encoded: dict) -> Size:
        """One: all pictures cost the same."""
        return Size(1)

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors, of the model's own picture size where the task sets none."""
        own = model.config.image_size
        side = self.image_size or (own if isinstance(own, int) else own[0])
        pixels = empty((count, model.config.num_channels, side, side), torch.float32)
        return {"pixel_values": pixels, "labels": empty((count,))}

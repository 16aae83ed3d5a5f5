"""Classification of pictures by a vision transformer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from rowsft.errors import UserError
from rowsft.tasks import Size
from rowsft.tasks.base import whole_number
from rowsft.tasks.heads import IMAGE_CLASSIFICATION
from rowsft.tasks.labelled import LabelledTask
from rowsft.tasks.pictures import Labelled, Pictures


class ImageClassification(LabelledTask):
    """`data`: see Pictures. Examples are {"id", "image", "label"}, pictures opened when a batch needs them.

    image_size: every picture is resized to this many pixels a side, whatever its shape. It becomes RGB and is scaled as
    the model's processor says.
    """

    head = IMAGE_CLASSIFICATION
    is_regression = False

    def __init__(
        self,
        name: str,
        data: Mapping[str, Any],
        image_size: int,
        primary_metric: str = "accuracy",
        extra_metrics: Sequence[str] = (),
        limits: Mapping[str, int | None] | None = None,
    ):
        super().__init__(name, None, primary_metric, extra_metrics, limits)
        self.image_size = whole_number("task.image_size", image_size, 8, " pixels")
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
        side = {"height": self.image_size, "width": self.image_size}
        resizing = {"do_resize": True, "size": side, "do_center_crop": False}

        def collate(encoded: list[dict]) -> dict[str, torch.Tensor]:
            pictures = [one["image"].opened() for one in encoded]
            pixels = processor(pictures, return_tensors="pt", **resizing)["pixel_values"]
            # numpy's memory is none that torch counts: the batch would be missing from the peaks on a CPU.
            return {"pixel_values": pixels.clone(), "labels": torch.tensor([one["labels"] for one in encoded])}

        return collate

    def check_model(self, model, /) -> None:
        """Raise UserError for a model whose position embeddings are of pictures of another size, and stay so."""
        own = model.config.image_size
        fixed = "interpolate_pos_encoding" in inspect.signature(type(model).forward).parameters
        if fixed and own not in (self.image_size, [self.image_size] * 2, (self.image_size,) * 2):
            raise UserError(
                f"task.image_size={self.image_size}: the model takes pictures of {own} pixels a side; set "
                f"task.image_size={own if isinstance(own, int) else own[0]}, or take a model that interpolates its "
                "positions, such as DINOv2"
            )

    def size(self, encoded: dict) -> Size:
        """One: all pictures cost the same."""
        return Size(1)

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors."""
        pixels = empty((count, 3, self.image_size, self.image_size), torch.float32)
        return {"pixel_values": pixels, "labels": empty((count,))}

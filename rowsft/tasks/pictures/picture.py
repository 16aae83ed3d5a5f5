"""A picture that is opened when it is needed, and pictures with their labels."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rowsft.errors import UserError, shortened


class Picture(Protocol):
    """A picture, and a key that is equal for equal content."""

    @abstractmethod
    def opened(self) -> Any:
        """The picture as PIL has it, in RGB. Raises UserError naming a picture that cannot be read."""

    @abstractmethod
    def key(self) -> str:
        """sha256 of its content."""


@dataclass(frozen=True)
class Labelled:
    """Pictures of a split: `ids`, `pictures` and `labels` (class indices), each of one length."""

    ids: Sequence[str]
    pictures: Sequence[Picture]
    labels: Sequence[int]

    def take(self, rows: Sequence[int]) -> "Labelled":
        """Return those rows."""
        return Labelled(
            ids=[self.ids[row] for row in rows],
            pictures=[self.pictures[row] for row in rows],
            labels=[self.labels[row] for row in rows],
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of any format that PIL reads."""

    path: Path

    def opened(self) -> Any:
        """See `Picture.opened`."""
        from PIL import Image

        try:
            with Image.open(self.path) as picture:
                return picture.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self.path}: cannot be read as a picture ({shortened(error, 200)}); correct or remove it"
            ) from error

    def key(self) -> str:
        """See `Picture.key`."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class ArrayPicture:
    """A grey picture as an array, uint8 (height, width); grey becomes three equal channels."""

    pixels: np.ndarray

    def opened(self) -> Any:
        """See `Picture.opened`."""
        from PIL import Image

        return Image.fromarray(self.pixels).convert("RGB")

    def key(self) -> str:
        """See `Picture.key`."""
        return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class DatasetPicture:
    """A row of a data set of `datasets` with a column of pictures."""

    dataset: Any
    column: str
    row: int
    where: str

    def opened(self) -> Any:
        """See `Picture.opened`."""
        try:
            return self.dataset[self.row][self.column].convert("RGB")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.where}, row {self.row}: cannot be read as a picture ({shortened(error, 200)})"
            ) from error

    def key(self) -> str:
        """See `Picture.key`."""
        picture = self.opened()
        return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()

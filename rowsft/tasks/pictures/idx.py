"""Pictures and labels in idx files, as MNIST and its relatives come: <split>-images-idx3-ubyte and -labels-idx1-."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from rowsft.errors import UserError
from rowsft.tasks.pictures.picture import ArrayPicture, Labelled

#: What MNIST calls its splits.
_STEMS = {"train": "train", "t10k": "test", "test": "test", "validation": "validation"}
_UINT8 = 0x08


def splits_in(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return (pictures, labels) of every split whose two files lie in the folder; none where it holds no idx files."""
    found = {}
    for stem, split in _STEMS.items():
        pictures, labels = (_file(folder, f"{stem}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        if pictures and labels:
            found[split] = (pictures, labels)
    return found


def read(pictures: Path, labels: Path, split: str) -> Labelled:
    """Return the pictures of a split with their labels. Raises UserError for files that are not what they seem."""
    pixels, classes = _array(pictures, 3), _array(labels, 1)
    if len(pixels) != len(classes):
        raise UserError(f"{labels}: {len(classes)} labels for the {len(pixels)} pictures of {pictures}")
    ids = [f"{split}-{row}" for row in range(len(pixels))]
    return Labelled(ids, [ArrayPicture(each) for each in pixels], classes.tolist())


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _array(path: Path, dimensions: int) -> np.ndarray:
    """The array in an idx file: four bytes that say what it holds, its sizes as 32-bit numbers, its values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the file again") from error
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, _UINT8, dimensions]) or len(data) < start:
        raise UserError(f"{path}: not an idx file of {dimensions} dimensions of unsigned bytes; get the file again")
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    if len(data) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: {len(data) - start:,} bytes of values for the shape {shape}; get the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)

"""The splits of labelled pictures: a folder of class folders, of idx files, a saved data set or one of the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.store.files import sha256
from rowsft.tasks import source_splits
from rowsft.tasks.data_settings import share
from rowsft.tasks.pictures import idx
from rowsft.tasks.pictures.picture import DatasetPicture, FilePicture, Labelled
from rowsft.tasks.reading import canonical
from rowsft.tasks.splits import NAMES, split_by_hash

KEYS = ("path", "config", "revision", "image", "label", "splits", "validation", "test", "split_seed")
_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
_EXPECTED = (
    "a folder of class folders with pictures (or train/, validation/ and test/ with class folders each), a folder of "
    "idx files, one written by save_to_disk, or a hub id such as org/name"
)


class Pictures:
    """What `task.data` describes: `path` is a folder or a hub id (with `config` and `revision`).

    `image` and `label` are columns of a data set. `splits` says which split of the source is which of ours (see
    source_splits). One that is null or that the source lacks is cut off train: the share `validation` or `test` of its
    pictures, by the hash of their content and `split_seed`; equal pictures stay together.
    """

    def __init__(self, data: Mapping[str, Any]):
        if not isinstance(data, Mapping):
            raise UserError(f"task.data={shortened(data)}: expected a mapping with the keys {', '.join(KEYS)}")
        for key in data:
            if key not in KEYS:
                raise UserError(f"task.data.{shortened(key)}: no such key; expected {', '.join(KEYS)}")
        self.data = {key: data.get(key) for key in KEYS}
        for key in ("path", "config", "revision", "image", "label"):
            if not isinstance(self.data[key], str | None):
                raise UserError(f"task.data.{key}={shortened(self.data[key])}: expected text or null")
        self.shares = {name: share(name, self.data[name]) for name in NAMES[1:]}
        if sum(self.shares.values()) >= 1:
            raise UserError(
                f"task.data.validation={self.data['validation']}, task.data.test={self.data['test']}: nothing is left "
                "to train on; expected a sum below 1"
            )
        seed = self.data["split_seed"]
        if isinstance(seed, bool) or not isinstance(seed, int | None):
            raise UserError(f"task.data.split_seed={shortened(seed)}: expected a whole number")
        self.names = source_splits.checked(self.data["splits"])
        self.warnings: list[str] = []

    def at_hand(self) -> bool:
        """Whether the pictures lie in a folder here."""
        return self.data["path"] is not None and Path(str(self.data["path"])).expanduser().is_dir()

    def read(self) -> tuple[dict[str, Labelled], list[str]]:
        """train, validation and test, and the name of every class. Raises UserError for what cannot be read."""
        if self.data["path"] is None:
            raise UserError(f"task.data.path=null: expected {_EXPECTED}")
        given, classes = self._given(self.data["path"])
        if len(classes) < 2:
            raise UserError(f"task.data.path={self.data['path']}: {len(classes)} class; expected two or more")
        return self._completed(given), classes

    def facts(self) -> dict[str, Any]:
        """source and sha256 of the pictures; the licence of the user's own data is not known here."""
        return {
            "source": str(self.data["path"]),
            "revision": self.data["revision"],
            "licence": "not stated: the user's own data",
            "caveat": "",
            "sha256": {"path": sha256(Path(str(self.data["path"])).expanduser())} if self.at_hand() else {},
            "warnings": self.warnings,
        }

    def _given(self, path: str) -> tuple[dict[str, Labelled], list[str]]:
        where, folder = f"task.data.path={shortened(path, 200)}", Path(path).expanduser()
        if not folder.exists():
            if path.startswith(("/", ".", "~")):
                raise UserError(f"{where}: no such folder; expected {_EXPECTED}")
            return self._of_hub(path, where)
        if not folder.is_dir():
            raise UserError(f"{where}: is a file; expected {_EXPECTED}")
        for key in ("config", "revision"):
            if self.data[key] is not None:
                raise UserError(f"task.data.{key}={shortened(self.data[key])}: is for a data set of the hub; set null")
        if found := idx.splits_in(folder):
            read = {name: idx.read(*files, name) for name, files in found.items()}
            highest = max(max(part.labels, default=0) for part in read.values())
            return self._named(read, where), [str(number) for number in range(highest + 1)]
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            from datasets import load_from_disk

            try:
                saved = load_from_disk(str(folder))
            except Exception as error:
                raise UserError(f"{where}: the saved data set cannot be read ({shortened(error, 200)})") from error
            return self._of_dataset(saved if isinstance(saved, dict) else {"train": saved}, where)
        return self._of_folders(folder, where)

    def _of_folders(self, folder: Path, where: str) -> tuple[dict[str, Labelled], list[str]]:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        splits = {canonical(path.name): path for path in inside if canonical(path.name) in NAMES}
        if "train" not in splits:
            splits = {"train": folder}
        classes = sorted(path.name for path in splits["train"].iterdir() if path.is_dir() and path.name[0] != ".")
        number = {name: index for index, name in enumerate(classes)}
        read = {}
        for split, place in splits.items():
            ids, pictures, labels = [], [], []
            for each in sorted(place.iterdir()):
                if not each.is_dir() or each.name.startswith("."):
                    continue
                if each.name not in number:
                    raise UserError(f"{where}: {each} is no class of the training pictures ({', '.join(classes[:10])})")
                for file in sorted(each.rglob("*")):
                    if file.suffix.lower() in _ENDINGS and file.is_file() and not file.name.startswith("."):
                        ids.append(f"{split}/{file.relative_to(place).as_posix()}")
                        pictures.append(FilePicture(file))
                        labels.append(number[each.name])
            read[split] = Labelled(ids, pictures, labels)
        if not len(read["train"]):
            raise UserError(f"{where}: no pictures in its folders; expected {_EXPECTED}")
        return self._named(read, where), classes

    def _of_hub(self, name: str, where: str) -> tuple[dict[str, Labelled], list[str]]:
        from datasets import load_dataset

        try:
            dataset = load_dataset(name, self.data["config"], revision=self.data["revision"])
        except Exception as error:
            raise UserError(
                f"{where}: no such folder, and it cannot be loaded from the hub ({shortened(error, 200)}); without a "
                "network, give a folder"
            ) from error
        return self._of_dataset(dataset, where)

    def _of_dataset(self, dataset: Mapping[str, Any], where: str) -> tuple[dict[str, Labelled], list[str]]:
        image, label = (self.data[key] or key for key in ("image", "label"))
        read, classes = {}, None
        for split, rows in dataset.items():
            for key, column in (("image", image), ("label", label)):
                if column not in rows.column_names:
                    have = ", ".join(rows.column_names)
                    raise UserError(
                        f"{where}, split {split}: no column {column}; task.data.{key} must be one of {have}"
                    )
            names = getattr(rows.features[label], "names", None)
            if names is None:
                raise UserError(f"{where}: the column {label} has no classes; cast it to a ClassLabel")
            if classes is not None and names != classes:
                raise UserError(f"{where}, split {split}: has other classes than the splits before it")
            classes = names
            pictures = [DatasetPicture(rows, image, row, f"{where}, split {split}") for row in range(len(rows))]
            read[split] = Labelled([f"{split}-{row}" for row in range(len(rows))], pictures, list(rows[label]))
        return self._named(read, where), list(classes or [])

    def _named(self, read: dict[str, Labelled], where: str) -> dict[str, Labelled]:
        """The splits under our names."""
        chosen = source_splits.choice(self.names, where, all_known=False)(list(read))
        return {ours: read[theirs] for ours, theirs in chosen.items()}

    def _completed(self, given: dict[str, Labelled]) -> dict[str, Labelled]:
        train = given["train"]
        missing = [name for name in NAMES[1:] if name not in given]
        if not missing:
            return {name: given[name] for name in NAMES}
        for name in missing:
            if not self.shares[name]:
                raise UserError(f"task.data.{name}={self.data[name]}: expected a share between 0 and 1")
        keys = [picture.key() for picture in train.pictures]
        sizes = {name: max(1, round(self.shares[name] * len(train))) if name in missing else 0 for name in NAMES[1:]}
        seed = self.data["split_seed"] or 0
        cut = split_by_hash(range(len(train)), keys.__getitem__, **sizes, seed=seed)
        if not cut["train"]:
            raise UserError(f"task.data.path={self.data['path']}: {len(train)} pictures are too few to cut into splits")
        if repeated := len(keys) - len(set(keys)):
            self.warnings = [
                f"{repeated:,} of {len(keys):,} training pictures repeat another; equal ones stay together"
            ]
        return {name: train.take(cut[name]) if name in ("train", *missing) else given[name] for name in NAMES}

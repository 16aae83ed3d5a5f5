"""Labelled pictures: class folders, idx files and saved data sets, and what of them is refused."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from rowsft.errors import UserError
from rowsft.tasks.image_classification import ImageClassification
from rowsft.tasks.pictures import Pictures

SHARES = {"validation": 0.2, "test": 0.2}


def picture(path, level, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 60, (9, 7, 3)) + level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def idx(path, array):
    kind = bytes([0, 0, 8, array.ndim])
    data = kind + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("cup", "apple")):
        for seed in range(10):
            picture(tmp_path / "pictures" / name / f"{seed}.png", 90 * number, seed)
    return tmp_path / "pictures"


def test_class_folders_are_classes_in_order_of_name_and_splits_are_cut_by_content(folder):
    splits, classes = Pictures({"path": str(folder), **SHARES}).read()
    assert classes == ["apple", "cup"]
    assert {name: len(part) for name, part in splits.items()} == {"train": 12, "validation": 4, "test": 4}
    ids = [id_ for part in splits.values() for id_ in part.ids]
    assert sorted(ids) == sorted(f"train/{name}/{seed}.png" for name in classes for seed in range(10))
    for part in splits.values():
        assert [classes[label] for label in part.labels] == [id_.split("/")[1] for id_ in part.ids]
    # Another name for the file is no other picture.
    test_before = {part.key() for part in splits["test"].pictures}
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_name(f"z{file.name}"))
    assert {part.key() for part in Pictures({"path": str(folder), **SHARES}).read()[0]["test"].pictures} == test_before


def test_equal_pictures_stay_in_one_split_and_are_told_of(folder):
    for copy in range(5):
        picture(folder / "apple" / f"copy{copy}.png", 90, seed=3)
    pictures = Pictures({"path": str(folder), **SHARES})
    splits, _ = pictures.read()
    keys = [{picture.key() for picture in part.pictures} for part in splits.values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert pictures.warnings == ["5 of 25 training pictures repeat another; equal ones stay together"]


def test_split_folders_are_splits(folder, tmp_path):
    folder.rename(tmp_path / "train")
    picture(tmp_path / "val" / "cup" / "a.png", 10)
    picture(tmp_path / "test" / "apple" / "b.png", 10)
    splits, classes = Pictures({"path": str(tmp_path), **SHARES}).read()
    assert [len(part) for part in splits.values()] == [20, 1, 1] and classes == ["apple", "cup"]
    assert splits["validation"].labels == [1] and splits["test"].labels == [0]
    picture(tmp_path / "test" / "pear" / "b.png", 10)
    with pytest.raises(UserError, match=r"test/pear is no class of the training pictures \(apple, cup\)"):
        Pictures({"path": str(tmp_path), **SHARES}).read()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_as_written(tmp_path, ending):
    pixels, labels = np.arange(10 * 4 * 3).reshape(10, 4, 3), np.arange(10) % 3
    for stem in ("train", "t10k"):
        idx(tmp_path / f"{stem}-images-idx3-ubyte{ending}", pixels)
        idx(tmp_path / f"{stem}-labels-idx1-ubyte{ending}", labels)
    splits, classes = Pictures({"path": str(tmp_path), **SHARES, "splits": {"validation": None}}).read()
    assert classes == ["0", "1", "2"] and [len(part) for part in splits.values()] == [8, 2, 10]
    for row, each in enumerate(splits["test"].pictures):
        opened = np.asarray(each.opened())
        assert opened.shape == (4, 3, 3) and (opened == pixels[row][..., None]).all()
    assert splits["test"].labels == labels.tolist()


def test_damaged_idx_files_are_named(tmp_path):
    idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 2, 2)))
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(4))
    with pytest.raises(UserError, match="4 labels for the 3 pictures"):
        Pictures({"path": str(tmp_path), **SHARES}).read()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x03\0\0\0\x02\0\0\0\x02abc")
    with pytest.raises(UserError, match=r"3 bytes of values for the shape \(3, 2, 2\)"):
        Pictures({"path": str(tmp_path), **SHARES}).read()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"nonsense nonsense")
    with pytest.raises(UserError, match="not an idx file of 3 dimensions"):
        Pictures({"path": str(tmp_path), **SHARES}).read()


def test_a_saved_data_set_has_columns_of_pictures_and_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.fromarray(np.full((3, 3), 20 * row, np.uint8)) for row in range(10)]
    rows = datasets.Dataset.from_dict({"img": images, "fine": [0, 1] * 5}, features=features)
    datasets.DatasetDict({"train": rows, "valid": rows.select(range(4))}).save_to_disk(tmp_path / "saved")
    data = {"path": str(tmp_path / "saved"), **SHARES, "splits": {"test": "valid", "validation": None}}
    with pytest.raises(UserError, match=r"no column image; task.data.image must be one of img, fine"):
        Pictures(data).read()
    splits, classes = Pictures({**data, "image": "img", "label": "fine"}).read()
    assert classes == ["a", "b"] and [len(part) for part in splits.values()] == [8, 2, 4]
    assert splits["test"].labels == [0, 1, 0, 1]
    assert (np.asarray(splits["test"].pictures[3].opened()) == 60).all()
    with pytest.raises(UserError, match=r"task.data.splits.test=held: no such split; .* has train, valid"):
        Pictures({**data, "image": "img", "label": "fine", "splits": {"test": "held", "validation": None}}).read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": None}, "task.data.path=null: expected a folder of class folders"),
        ({"path": "./nowhere"}, "task.data.path=./nowhere: no such folder"),
        ({"path": ".", "config": "x"}, "task.data.config=x: is for a data set of the hub"),
        ({"path": ".", "colour": 1}, "task.data.colour: no such key"),
        ({"path": ".", "test": 1.5}, "task.data.test=1.5: expected a share between 0 and 1"),
        ({"path": ".", "test": 0.6, "validation": 0.5}, "nothing is left to train on"),
        (
            {"path": ".", "splits": {"dev": "a"}},
            "task.data.splits.dev: no such split; expected train, validation, test",
        ),
        ({"path": ".", "splits": {"train": None}}, "task.data.splits.train=null: expected the name of the split"),
        ({"path": ".", "split_seed": "x"}, "task.data.split_seed=x: expected a whole number"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        Pictures(data).read()


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "cup" / "3.png").write_text("no picture")
    task = ImageClassification("own", {"path": str(folder), **SHARES}, image_size=8)
    bad = [row for rows in task.splits().values() for row in rows if row["id"] == "train/cup/3.png"]
    with pytest.raises(UserError, match=r"cup/3.png: cannot be read as a picture"):
        bad[0]["image"].opened()


def test_one_class_alone_is_refused(folder):
    with pytest.raises(UserError, match="1 class; expected two or more"):
        Pictures({"path": str(folder / "cup"), **SHARES} | {"path": str(_alone(folder))}).read()


def _alone(folder):
    for file in (folder / "apple").iterdir():
        file.unlink()
    (folder / "apple").rmdir()
    return folder


def test_a_batch_has_the_models_own_pixels(folder):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    task = ImageClassification("own", {"path": str(folder), **SHARES}, image_size=16)
    examples = task.splits()["test"]
    batch = task.collator(processor)(task.encode(examples, processor))
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["labels"].tolist() == [
        row["label"] for row in examples
    ]
    resized = np.asarray(examples[2]["image"].opened().resize((16, 16), Image.Resampling.BILINEAR), np.float64)
    wanted = (resized / 255 - 0.5) / 0.5
    assert np.abs(batch["pixel_values"][2].permute(1, 2, 0).numpy() - wanted).max() < 1e-5


def test_a_model_of_another_picture_size_is_refused_unless_it_interpolates(folder):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 4, "image_size": 16}
    vit = ViTForImageClassification(ViTConfig(intermediate_size=64, **shape))
    dino = Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **shape))
    fits, other = (ImageClassification("own", {"path": str(folder), **SHARES}, image_size=size) for size in (16, 24))
    fits.check_model(vit)
    other.check_model(dino)
    with pytest.raises(UserError, match="task.image_size=24: the model takes pictures of 16 pixels a side; set .*=16"):
        other.check_model(vit)
    # What is refused is what the model refuses.
    assert dino(pixel_values=torch.zeros(1, 3, 24, 24)).logits.isfinite().all()
    with pytest.raises(ValueError, match="doesn't match model"):
        vit(pixel_values=torch.zeros(1, 3, 24, 24))

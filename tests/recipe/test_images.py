"""Every method on a vision transformer, through the runner that texts go through."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.models.loading import load
from rowsft.plan import plan
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.tasks.heads import IMAGE_CLASSIFICATION

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "image_size": 16}
FAMILIES = {
    "vit_base": (ViTForImageClassification, ViTConfig, {"intermediate_size": 64}),
    "deit_base": (DeiTForImageClassification, DeiTConfig, {"intermediate_size": 64}),
    "dinov2_small": (Dinov2ForImageClassification, Dinov2Config, {"mlp_ratio": 2}),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Pictures of three classes that differ in colour, and a tiny model of every family."""
    folder, draw = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    for number, name in enumerate(("apple", "box", "cup")):
        for count in range(16):
            pixels = draw.integers(0, 100, (18 + count % 3, 17, 3))
            pixels[..., number] += 120
            path = folder / "pictures" / name / f"{count}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    for family, (model, config, more) in FAMILIES.items():
        model(config(**SIZES, **more)).save_pretrained(folder / family)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / family)
    return folder


def ran(gallery, family, *more, planned=True):
    """The plan (None where it is not asked for) and the record of a run on the gallery."""
    given = [
        *(
            f"model={family}",
            "task=images/folder",
            "task.image_size=16",
            f"task.data.path={gallery / 'pictures'}",
            "trainer.steps=30",
        ),
        *(
            "trainer.batch_size=8",
            "trainer.eval_batch_size=4",
            "trainer.learning_rate=0.01",
            "trainer.device=cpu",
            "trainer.calibration_batches=2",
        ),
        *(f"store={gallery / 'runs'}", "budget.params=1056", *more),
    ]
    foreseen = None
    if planned:
        bare = gallery / "bare" / family
        bare.mkdir(parents=True, exist_ok=True)
        shutil.copy(gallery / family / "config.json", bare)
        config = compose([*given, f"model.source={bare}"])
        foreseen = plan(config, trainer_settings(config))
    config = compose([*given, f"model.source={gallery / family}"])
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), rerun=False, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    return foreseen, Store(gallery / "runs").get(spec.run_id)


@pytest.mark.parametrize("method", ["row_sft", "row_sft_columns", "row_sft_neurons", "lora", "dora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_learn_colours_at_the_planned_peak(gallery, family, method):
    if family != "vit_base" and method not in ("row_sft", "row_sft_neurons", "full"):
        pytest.skip("of the other families the two ways to choose rows, and what trains all")
    planned, record = ran(gallery, family, f"method={method}")
    assert record.result.metrics["test"]["accuracy"] >= 0.8
    assert record.result.task_about.classes == ["apple", "box", "cup"]
    memory = record.result.memory
    train, evaluate = memory.train.peak_allocated_bytes, memory.evaluate.peak_allocated_bytes
    # Of a model this small, what the backward pass of its convolution needs in between is a share that shows.
    assert planned.peak_bytes == pytest.approx(train, rel=0.01 if method != "full" else 0.02)
    assert planned.evaluation_bytes == pytest.approx(evaluate, rel=0.01)


def test_importance_by_label_takes_pictures(gallery):
    _, plain = ran(gallery, "vit_base", "method=row_sft", "method.importance=taylor", planned=False)
    _, by_label = ran(
        gallery, "vit_base", "method=row_sft", "method.importance='labelwise(taylor, max)'", planned=False
    )
    assert by_label.result.metrics["test"]["accuracy"] >= 0.8
    chosen = [load_file(record.file("adapter") / "adapter_model.safetensors") for record in (plain, by_label)]
    ids = [{name: values for name, values in one.items() if not values.is_floating_point()} for one in chosen]
    assert ids[0] and ids[0].keys() == ids[1].keys()
    assert any(not torch.equal(ids[0][name], ids[1][name]) for name in ids[0])


def test_random_weights_are_a_control_with_a_record_of_its_own(gallery):
    _, pretrained = ran(gallery, "vit_base", "method=full", planned=False)
    config = compose(
        ["model=vits_random", f"model.source={gallery / 'vit_base'}", "task=images/folder", "task.data.path=x"]
    )
    one, other, same = (load(config.model, IMAGE_CLASSIFICATION, {"num_labels": 3}, seed=seed) for seed in (1, 2, 1))
    weights = [model.model.vit.layers[0].mlp.fc1.weight for model in (one, other, same)]
    checkpoint = ViTForImageClassification.from_pretrained(gallery / "vit_base").vit.layers[0].mlp.fc1.weight
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], checkpoint) and one.facts["new_weights"] == ["all"]
    _, random = ran(gallery, "vit_base", "method=full", "+model.pretrained=false", planned=False)
    assert random.id != pretrained.id and random.result.metrics["test"]["accuracy"] >= 0.8

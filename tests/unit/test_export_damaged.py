"""An adapter whose file is damaged is not exported: one line says what is wrong with it, and nothing is written."""

import json
from functools import partial

import pytest
import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from rows import adapt, family, logits, shake, train
from safetensors.torch import load_file, save_file
from task_tools import words
from tiny import tiny_bert
from transformers import AutoModelForSequenceClassification

from rowsft.errors import UserError
from rowsft.export import export

LAYER = "base_model.model.bert.encoder.layer.1.attention.self.query"
ROWS, COLUMNS = f"{LAYER}.row_sft_ids", f"{LAYER}.row_sft_column_ids"
DELTA, BIAS, COLUMN_DELTA = f"{LAYER}.row_sft_delta", f"{LAYER}.row_sft_bias", f"{LAYER}.row_sft_column_delta"
HEAD = "base_model.model.classifier.weight"


def save_base(folder):
    tiny_bert(num_labels=3).save_pretrained(folder)
    words().save_pretrained(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A saved row-SFT adapter with rows, columns, biases and a head, beside its base model."""
    folder = tmp_path_factory.mktemp("whole")
    save_base(folder / "base")
    model, _, targets = family("bert", num_labels=3)
    tuned = adapt(model, targets, channel="both", modules_to_save=["classifier"], task_type="SEQ_CLS")
    shake(tuned)
    tuned.save_pretrained(folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    return {**config, "base_model_name_or_path": str(folder / "base")}, load_file(
        folder / "adapter" / "adapter_model.safetensors"
    )


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def entry(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def without_layer(tensors):
    for name in [name for name in tensors if name.startswith(LAYER)]:
        del tensors[name]


DAMAGES = {
    "missing delta": (without(DELTA), f"lacks {DELTA}"),
    "missing bias": (without(BIAS), f"lacks {BIAS}"),
    "missing ids": (without(ROWS), f"lacks {ROWS}"),
    "missing column delta": (without(COLUMN_DELTA), f"lacks {COLUMN_DELTA}"),
    "missing head": (without(HEAD), f"lacks {HEAD}"),
    "missing layer": (without_layer, rf"lacks {LAYER}.* and 4 more"),
    "nan bias": (put(BIAS, entry(float("nan"))), f"{BIAS} in .* is not finite"),
    "inf delta": (put(DELTA, entry(float("inf"))), f"{DELTA} in .* is not finite"),
    "nan head": (put(HEAD, entry(float("nan"))), f"{HEAD} in .* is not finite"),
    "short delta": (
        put(DELTA, lambda tensor: tensor[:-1].clone()),
        rf"{DELTA} in .* has shape \(\d, 32\); expected",
    ),
    "flat delta": (put(DELTA, lambda tensor: tensor.reshape(-1)), f"{DELTA} in .* has shape"),
    "long bias": (put(BIAS, lambda tensor: torch.cat([tensor, tensor])), f"{BIAS} in .* has shape"),
    "fewer ids": (put(ROWS, lambda ids: ids[:-1].clone()), f"{ROWS} in .* has shape"),
    "narrow head": (put(HEAD, lambda tensor: tensor[:, :-1].clone()), f"{HEAD} in .* has shape"),
    "float ids": (put(ROWS, lambda ids: ids.float()), rf"{ROWS} in .* holds torch.float32; expected whole numbers"),
    "whole delta": (put(DELTA, lambda tensor: tensor.long()), f"{DELTA} in .* expected real numbers"),
    "ids too large": (put(ROWS, entry(1000)), "ids of layer .* run from .* to 1000"),
    "negative ids": (put(COLUMNS, entry(-2)), "ids of layer .* run from -2"),
    "ids twice": (put(ROWS, lambda ids: ids[:1].repeat(len(ids))), "name a row twice|expected different ones"),
    "extra tensor": (
        lambda tensors: tensors.update(spare=torch.ones(2)),
        "holds spare, which the adapter does not train",
    ),
    "extra layer": (
        lambda tensors: tensors.update({DELTA.replace("query", "dense"): torch.ones(3, 32)}),
        "which the adapter does not train",
    ),
}


@pytest.mark.parametrize("to", ["lora", "merged"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(whole, tmp_path, damage, to):
    config, tensors = whole
    change, said = DAMAGES[damage]
    tensors = dict(tensors)
    change(tensors)
    adapter = write(tmp_path / "adapter", config, tensors)
    with pytest.raises(UserError, match=said) as error:
        export(str(adapter), to, tmp_path / "out" / "new", tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_the_whole_one_goes_out(whole, tmp_path, to):
    adapter = write(tmp_path / "adapter", *whole)
    assert export(str(adapter), to, tmp_path / "out", tmp_path / "runs").is_dir()


@pytest.mark.parametrize("kind", [LoraConfig, partial(LoraConfig, use_dora=True), ShiraConfig])
def test_other_adapters_are_looked_at_too(tmp_path, kind):
    save_base(tmp_path / "base")
    model, batch, targets = family("bert", num_labels=3)
    tuned = get_peft_model(model, kind(r=2, target_modules=targets, task_type="SEQ_CLS"))
    train(tuned, batch)
    tuned.eval().save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    out = export(str(write(tmp_path / "whole", config, tensors)), "merged", tmp_path / "out", tmp_path / "runs")
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    torch.testing.assert_close(logits(merged, batch), logits(tuned, batch), rtol=1e-4, atol=1e-5)
    lost = next(name for name, tensor in tensors.items() if name.startswith(LAYER) and tensor.is_floating_point())
    cut = write(tmp_path / "cut", config, {name: tensor for name, tensor in tensors.items() if name != lost})
    with pytest.raises(UserError, match=f"lacks {lost}"):
        export(str(cut), "merged", tmp_path / "none", tmp_path / "runs")
    broken = write(tmp_path / "broken", config, {**tensors, lost: tensors[lost] * float("nan")})
    with pytest.raises(UserError, match=f"{lost} in .* is not finite"):
        export(str(broken), "merged", tmp_path / "none", tmp_path / "runs")
    assert not (tmp_path / "none").exists()

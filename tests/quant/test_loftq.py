"""LoftQ on a base in 4 bits: its base is really another, nearer to the weights with its adapter, and comes back."""

import copy

import pytest
import torch
from method_contract import adamw, logits, train
from peft import LoraConfig, PeftModel, get_peft_model
from peft_loftq import peft_loftq
from quantised_bases import loaded
from tiny import causal_batch, classification_batch
from tiny_workshop import build_workshop

from rowsft.baselines.loftq import Loftq
from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.errors import UserError
from rowsft.export.source import find
from rowsft.layers.packing import packed
from rowsft.layers.quantised import dequantised
from rowsft.methods.base import ResolvedMethod, method_class, method_of
from rowsft.models.loading import load
from rowsft.quantisation.quantisers import quantiser
from rowsft.quantisation_error.layer import Arithmetic, Sizes, layer_errors
from rowsft.selection.budget import Budget
from rowsft.selection.ids import Chosen
from rowsft.selection.targets import Targets
from rowsft.store import Store
from rowsft.tasks import Task

RANK = 8
NONE = Chosen(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def attached(folder, quantize="nf4", **settings):
    model = loaded(folder, quantize)
    method = Loftq(r=RANK, **settings)
    resolved = method.solve(Budget(), model, Targets())
    return method, resolved, method.attach(model, resolved)


def base_layers(model) -> dict:
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}
    return {name: layer.get_base_layer() for name, layer in layers.items()}


def factors(model, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    layer = model.get_base_model().get_submodule(name)
    return layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data


@pytest.mark.parametrize("quantize", ["nf4", "nf4_double"])
@pytest.mark.parametrize("start", ["loftq", "pissa"])
def test_base_and_adapter_make_up_the_weights_better_than_the_quantised_base(llama, start, quantize):
    weights = loaded(llama, None)
    plain = loaded(llama, quantize)
    _, _, wrapped = attached(llama, quantize, start=start, steps=3)
    for name, base in base_layers(wrapped).items():
        weight = weights.get_submodule(name).weight.data
        b, a = factors(wrapped, name)
        stands_for = dequantised(base)
        assert not torch.equal(base.weight.data, plain.get_submodule(name).weight.data), name
        error = (weight - stands_for - b @ a).norm().item()
        assert error < 0.9 * (weight - dequantised(plain.get_submodule(name))).norm().item()
        # The measurement that `rowsft quantisation-error` makes, by another way.
        arithmetic = Arithmetic(quantiser(quantize, "bitsandbytes"), 3)
        found = layer_errors(name, weight, {"rows": NONE}, Sizes(0, RANK), arithmetic)
        title = {"loftq": "LoftQ", "pissa": "PiSSA"}[start]
        [expected] = [each for each in found.starts if each.start == f"{title}, 3 steps"]
        assert error == pytest.approx(expected.whole.absolute, rel=1e-5)
    batch = causal_batch()
    exact, before, after = (logits(model, batch) for model in (weights, plain, wrapped))
    assert (after - exact).norm() < (before - exact).norm()


def test_it_trains_its_adapter_alone_and_counts_it(llama):
    method, resolved, wrapped = attached(llama)
    assert method.trainable(wrapped) == {"adapter": resolved.achieved, "head": 0, "total": resolved.achieved}
    before = {name: base.weight.data.clone() for name, base in base_layers(wrapped).items()}
    start = {name: factors(wrapped, name)[1].clone() for name in before}
    losses = train(wrapped.train(), causal_batch(), steps=4)
    assert losses[-1] < losses[0]
    for name, base in base_layers(wrapped).items():
        assert torch.equal(base.weight.data, before[name])
        assert not torch.equal(factors(wrapped, name)[1], start[name])


@pytest.mark.parametrize("quantize", ["nf4", "nf4_double"])
def test_it_is_saved_and_loaded_with_its_base_and_merges(llama, quantize, tmp_path):
    method, resolved, wrapped = attached(llama, quantize, steps=2)
    batch = causal_batch()
    train(wrapped.train(), batch)
    expected = logits(wrapped, batch)
    method.save(wrapped, tmp_path)
    again = method.load(loaded(llama, quantize), resolved, tmp_path)
    torch.testing.assert_close(logits(again, batch), expected, rtol=1e-6, atol=1e-7)
    # Without its base the adapter means another model: the file is there for a reason.
    alone = PeftModel.from_pretrained(loaded(llama, quantize), tmp_path)
    assert not torch.allclose(logits(alone, batch), expected, atol=1e-3)
    with pytest.raises(UserError, match="belongs to a base of its own"):
        find(str(tmp_path), tmp_path)
    merged = method.merge(copy.deepcopy(again))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "quantised_base.safetensors").unlink()
    with pytest.raises(UserError, match="the adapter belongs to the base in this file"):
        method.load(loaded(llama, quantize), resolved, tmp_path)


def test_biases_stay_and_a_head_is_trained_and_saved(bert, tmp_path):
    method, targets = Loftq(r=RANK, steps=2), Targets(head_modules=["classifier", "bert.pooler"])
    model, plain, batch = loaded(bert), loaded(bert), classification_batch()
    resolved = method.solve(Budget(), model, targets)
    wrapped = method.attach(model, resolved)
    for name, base in base_layers(wrapped).items():
        assert torch.equal(base.bias, plain.get_submodule(name).bias)
    assert method.trainable(wrapped)["head"] > 0
    train(wrapped.train(), batch)
    expected = logits(wrapped, batch)
    method.save(wrapped, tmp_path)
    again = method.load(loaded(bert), resolved, tmp_path)
    torch.testing.assert_close(logits(again, batch), expected, rtol=1e-6, atol=1e-7)


def test_its_losses_are_those_of_peft_by_hand(llama):
    """PEFT's own LoftQ, and its base packed again: what its documentation tells users to do."""
    _, resolved, wrapped = attached(llama, steps=1)
    model, weights = loaded(llama, "nf4"), loaded(llama, None)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=resolved.values["target_modules"])
    by_hand = get_peft_model(model, config)
    for name in resolved.values["target_modules"]:
        layer = by_hand.get_base_model().get_submodule(name)
        base, a, b = peft_loftq(weights.get_submodule(name).weight.data, RANK, 1)
        plain = torch.nn.Linear(*base.shape[::-1], bias=False)
        plain.weight.data = base
        layer.base_layer = packed(plain, "nf4")
        layer.base_layer.support_avx512bf16_for_cpu = False
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    batch = causal_batch()
    losses, expected = (train(each.train(), batch, 5, adamw(each)) for each in (wrapped, by_hand))
    assert len(set(expected)) == 5
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_base_that_is_not_in_4_bits_is_refused(llama, quantize):
    with pytest.raises(UserError, match=r"method=loftq: layer .* is not held in 4 bits; set model.quantize=nf4"):
        attached(llama, quantize)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scaling": 2.0}, "method.scaling=2.0: expected 1"),
        ({"start": "svd"}, "method.start=svd: unknown; use one of loftq, pissa"),
        ({"steps": 0}, "method.steps=0: expected 1 or more"),
        ({"svd_iterations": -1}, "method.svd_iterations=-1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        method_class("loftq")(**wrong)


def test_a_run_is_planned_trained_and_evaluated_again_from_what_it_saved(llama, tmp_path, capsys):
    workshop = build_workshop(tmp_path)
    overrides = [*workshop.overrides("llama"), f"model.source={llama}", "model.quantize=nf4", "method=loftq"]
    overrides += ["budget.rows=null", "method.r=4", "method.steps=2", "experiment_name=loftq"]
    for command in ("plan", "run"):
        with pytest.raises(SystemExit) as ended:
            main([command, *overrides])
        assert ended.value.code == 0, capsys.readouterr().err
    [record] = Store(workshop.folder / "runs").runs("loftq")
    config = compose(overrides)
    task = instantiated("task", config.task, Task)
    base = load(config.model, task.head, task.head_settings(), seed=config.seed)
    resolved = ResolvedMethod(dict(record.result.resolved))
    model = method_of(config.method).load(base.model, resolved, record.file("adapter")).eval()
    again = task.evaluate(model, task.splits()["test"], base.processor, 8)
    assert again.metrics == pytest.approx(record.result.metrics["test"], rel=1e-5)
    with pytest.raises(SystemExit) as ended:
        main(["export", record.id, "--to", "merged", "--store", str(workshop.folder / "runs")])
    assert ended.value.code == 2 and "belongs to a base of its own" in capsys.readouterr().err

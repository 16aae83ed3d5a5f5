"""Rows whose inputs are rebuilt in the backward pass have the gradients of rows whose inputs are kept."""

import contextlib
import json

import pytest
import torch
from dense import checkpoint, loss_on
from families import MORE_FAMILIES
from rebuilding import compare, gradients, normed_layers, of_any_family, of_family, sources
from rows import FAMILIES, adapt, family, random_ids, shake
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from rowsft import RowSFTConfig
from rowsft.errors import UserError

families = pytest.mark.parametrize("name", FAMILIES)
attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])
row_channels = pytest.mark.parametrize("channel", ["rows", "both", "neurons"])
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}

#: How many layers rebuild their input and how many keep it, with frozen embeddings in front. Kept are the inputs of the
#: first q, k and v, which have no graph; with eager attention the input of every output projection, a product of
#: matrices; in DeBERTa also those of q and k in every block, which it calls with the position embeddings too.
REBUILT_AND_KEPT = {
    "llama": {"sdpa": (11, 3), "eager": (9, 5)},
    "bert": {"sdpa": (9, 3), "eager": (7, 5)},
    "gpt2": {"sdpa": (7, 1), "eager": (5, 3)},
    "mistral": {"sdpa": (11, 3), "eager": (9, 5)},
    "gemma": {"sdpa": (11, 3), "eager": (9, 5)},
    "qwen2": {"sdpa": (11, 3), "eager": (9, 5)},
    "opt": {"sdpa": (9, 3), "eager": (7, 5)},
    "roberta": {"sdpa": (9, 3), "eager": (7, 5)},
    "deberta_v3": {"sdpa": (5, 7), "eager": (5, 7)},
    "t5": {"sdpa": (30, 6), "eager": (24, 12)},
    "vit": {"sdpa": (9, 3), "eager": (7, 5)},
}
#: The same on a CPU in bf16, which saves a LayerNorm's statistics in 16 bits: its outputs are kept.
REBUILT_AND_KEPT_IN_BF16 = {
    **REBUILT_AND_KEPT,
    **dict.fromkeys(("bert", "opt", "roberta", "vit"), {"sdpa": (4, 8), "eager": (2, 10)}),
    "gpt2": {"sdpa": (4, 4), "eager": (2, 6)},
    "deberta_v3": {"sdpa": (2, 10), "eager": (2, 10)},
}


def precision(kind: str):
    return torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else contextlib.nullcontext()


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
@pytest.mark.parametrize("kind", PRECISIONS)
@attentions
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_every_family_in_every_precision(name, attention, kind):
    rebuilding, keeping, batch = of_any_family(name, PRECISIONS[kind], attention)
    found = []
    for model in (rebuilding, keeping):
        with precision(kind):
            loss = model(**batch).loss
        loss.backward()
        found.append(gradients(model))
    assert not sources(keeping)[0]
    rebuilt, kept = sources(rebuilding)
    expected = REBUILT_AND_KEPT_IN_BF16 if kind == "bf16" else REBUILT_AND_KEPT
    # Older transformers have no T5 with sdpa, and take their own in its place.
    computed = attention if rebuilding.base_model.model._supports_sdpa else "eager"
    assert (len(rebuilt), len(kept)) == expected[name][computed], rebuilding.base_model.input_sources()
    with precision(kind):
        normed = normed_layers(keeping, batch)
    compare(*found, normed, torch.float32 if kind == "fp32" else torch.bfloat16)


def test_no_table_without_its_family():
    assert REBUILT_AND_KEPT.keys() == MORE_FAMILIES.keys()
    for name, numbers in REBUILT_AND_KEPT.items():
        assert {sum(each) for each in numbers.values()} == {MORE_FAMILIES[name].layers}


@row_channels
@families
def test_every_channel_that_trains_rows(name, channel):
    rebuilding, keeping, batch = of_family(name, channel)
    found = []
    for model in (rebuilding, keeping):
        model(**batch).loss.backward()
        found.append(gradients(model))
    compare(*found, normed_layers(keeping, batch))


@pytest.mark.parametrize("reentrant", [True, False])
@row_channels
@families
def test_under_checkpointing(name, channel, reentrant):
    rebuilding, keeping, batch = of_family(name, channel)
    found = []
    keeping.enable_input_require_grads()
    normed = normed_layers(keeping, batch)
    for model in (rebuilding, keeping):
        checkpoint(model, reentrant)
        for _ in range(2):
            model(**batch).loss.backward()
        found.append(gradients(model))
    compare(*found, normed)
    told = rebuilding.base_model.input_sources()
    if reentrant:
        assert any(text.startswith("rebuilt") for text in told.values())
    else:
        assert set(told.values()) == {"kept: saved-tensor hooks are active"}


@pytest.mark.parametrize("backwards", ["one each", "one for both"])
@families
def test_accumulated_micro_batches(name, backwards):
    rebuilding, keeping, batch = of_family(name)
    batches = (batch, FAMILIES[name][1](seed=2))
    found = []
    for model in (rebuilding, keeping):
        if backwards == "one each":
            for each in batches:
                model(**each).loss.backward()
        else:
            loss_on(*batches)(model).backward()
        found.append(gradients(model))
    compare(*found, normed_layers(keeping, batch))


@pytest.mark.parametrize("second", ["rows", "columns", "both", "neurons"])
@row_channels
@families
def test_two_adapters(name, channel, second):
    rebuilding, keeping, batch = of_family(name, channel)
    plain, _, targets = family(name)
    found = []
    for model, recompute in ((rebuilding, True), (keeping, False)):
        ids = random_ids(plain, targets, second, seed=5)
        config = RowSFTConfig(target_modules=targets, channel=second, recompute_inputs=recompute, **ids)
        model.add_adapter("other", config)
        shake(model, "other", seed=3)
        model.base_model.set_adapter(["default", "other"])
        model(**batch).loss.backward()
        found.append(gradients(model, ("default", "other")))
    compare(*found, normed_layers(keeping, batch))


@pytest.mark.parametrize("first", [True, False])
def test_each_adapter_has_its_own_switch(first):
    """Whichever came last: an input is kept where an active adapter asks for it."""
    model, batch, targets = family("llama")
    tuned = adapt(model, targets, recompute_inputs=first)
    ids = random_ids(family("llama")[0], targets, seed=5)
    tuned.add_adapter("other", RowSFTConfig(target_modules=targets, recompute_inputs=not first, **ids))

    def kept(*adapters: str) -> set[str]:
        tuned.base_model.set_adapter(list(adapters))
        tuned(**batch).loss.backward()
        return {said for said in tuned.base_model.input_sources().values() if said == "kept: recompute_inputs is off"}

    rebuilds, keeps = ("default", "other") if first else ("other", "default")
    assert not kept(rebuilds) and kept(keeps) and kept("default", "other") and not kept(rebuilds)
    tuned.delete_adapter(keeps)
    tuned.add_adapter(keeps, RowSFTConfig(target_modules=targets, **ids))
    assert not kept(keeps)


@pytest.mark.parametrize("trained", ["q_proj", "v_proj", "row_sft_bias", "up_proj"])
def test_some_values_are_frozen(trained):
    """The layers that share an input may not all need it."""
    name = "bert" if trained == "row_sft_bias" else "llama"
    rebuilding, keeping, batch = of_family(name)
    found = []
    for model in (rebuilding, keeping):
        model.enable_input_require_grads()
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("row_sft_" in key and trained in key)
        model(**batch).loss.backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad})
    assert found[0]
    for key, gradient in found[0].items():
        assert torch.equal(gradient, found[1][key]), key


def worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=1)
    for name in ("llama", "bert"):
        rebuilding, keeping, batch = of_family(name)
        found = []
        for model in (rebuilding, keeping):
            wrapped = DistributedDataParallel(model)
            for _ in range(2):
                wrapped(**batch).loss.backward()
            found.append(gradients(model))
        torch.save((*found, normed_layers(keeping, batch), sources(rebuilding)), f"{folder}/{name}.pt")
    distributed.destroy_process_group()


def test_a_model_wrapped_for_data_parallel_training(tmp_path):
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=1)
    for name in ("llama", "bert"):
        rebuilt, kept, normed, (rebuilt_layers, kept_layers) = torch.load(tmp_path / f"{name}.pt")
        compare(rebuilt, kept, normed)
        assert (len(rebuilt_layers), len(kept_layers)) == REBUILT_AND_KEPT[name]["sdpa"]


def test_inputs_are_rebuilt_by_default_and_the_setting_is_saved(tmp_path):
    assert RowSFTConfig(rows=1).recompute_inputs is True
    model, _, targets = family("llama")
    adapt(model, targets, recompute_inputs=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["recompute_inputs"] is False
    assert RowSFTConfig.from_pretrained(tmp_path).recompute_inputs is False
    with pytest.raises(UserError, match=r"recompute_inputs='yes'"):
        RowSFTConfig(rows=1, recompute_inputs="yes")


def test_the_sources_are_those_of_the_last_recorded_forward():
    rebuilding, _, batch = of_family("llama")
    rebuilding(**batch).loss.backward()
    recorded = rebuilding.base_model.input_sources()
    assert recorded["model.layers.1.mlp.down_proj"].startswith("rebuilt: Mul")
    assert recorded["model.layers.0.self_attn.q_proj"].startswith("kept: ")
    with torch.no_grad():
        rebuilding(**batch)
    assert rebuilding.base_model.input_sources() == recorded
    rebuilding.enable_input_require_grads()
    rebuilding(**batch)
    assert rebuilding.base_model.input_sources()["model.layers.0.self_attn.q_proj"].startswith("rebuilt: Mul")

"""A model family of a user's own: one module and the model's YAML, which names it."""

import json
import os
from pathlib import Path
from runpy import run_path

import pytest
import torch
from tiny import causal_batch
from tiny_workshop import build_workshop, tokenizer
from transformers import OPTConfig, OPTForCausalLM

from rowsft.selection import families
from rowsft.selection.choose import unit_groups_for
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.store import Store

HERE = Path(__file__).parent


def tiny_opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
    config = OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=128, pad_token_id=0)
    return OPTForCausalLM(config).eval()


@pytest.fixture
def known(monkeypatch):
    """The family is known for one test."""
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES])
    run_path(str(HERE / "opt_family.py"))


@torch.no_grad()
def without(members) -> torch.Tensor:
    """Logits of the model whose rows (with biases) or columns of one unit, of these members, are zero."""
    model = tiny_opt().double()
    for member in members:
        layer = model.get_submodule(member.layer)
        ids = member.ids[1]
        if member.axis == "rows":
            layer.weight[ids] = 0
            layer.bias[ids] = 0
        else:
            layer.weight[:, ids] = 0
    return model(**causal_batch()).logits


def test_producers_and_consumer_silence_the_same_unit(known):
    model = tiny_opt()
    unit_groups = unit_groups_for(model, eligible_layers(model, Targets()), "neurons", "linear")
    assert [(group.noun, group.size) for group in unit_groups] == [("heads", 4), ("hidden units", 64)] * 2
    for group in unit_groups:
        *producers, consumer = group.members
        # A head's values alone, and a hidden unit's only producer.
        torch.testing.assert_close(without(producers[-1:]), without([consumer]), rtol=1e-9, atol=1e-11)
        assert not torch.allclose(without([consumer]), without([]))


def test_a_model_type_has_one_family(known):
    with pytest.raises(ValueError, match="model type opt of family Mine belongs to OPT"):
        families.register_family(families.Family("Mine", ("opt",), *[families.Coupling(("a",), "b")] * 2))


def test_a_run_and_its_plan(tmp_path):
    workshop = build_workshop(tmp_path)
    tiny_opt().save_pretrained(tmp_path / "models" / "opt")
    tokenizer("llama").save_pretrained(tmp_path / "models" / "opt")
    given = ["model=opt_125m", f"model.source={tmp_path / 'models' / 'opt'}", "experiment_name=opt", "method=row_sft"]
    overrides = [*workshop.overrides("llama")[2:], *given, "method.channel=neurons", "method.importance=l2"]
    for command in ("plan", "run"):
        done = workshop.rowsft(command, *overrides, ROWSFT_CONFIG_DIR=os.fspath(HERE / "conf"))
        assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "runs").runs("opt")
    saved = json.loads((record.file("adapter") / "adapter_config.json").read_text())
    assert set(saved["rows_pattern"].values()) == {3 * 8, 3}
    missing = [setting for setting in overrides if not setting.startswith("model=")]
    refused = workshop.rowsft(
        "plan", *missing, "model=opt_125m", "model.module=nowhere", ROWSFT_CONFIG_DIR=os.fspath(HERE / "conf")
    )
    assert refused.returncode == 2
    assert "model.module=nowhere: cannot be imported" in refused.stderr


@pytest.mark.parametrize("wrong", [{"models": "opt"}, {"mlp": families.Coupling("fc1", "fc2")}])
def test_a_name_that_stands_where_a_tuple_is_meant_is_refused(monkeypatch, wrong):
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES])
    coupling = families.Coupling(("fc1",), "fc2")
    right = {"name": "OPT", "models": ("opt",), "attention": coupling, "mlp": coupling}
    with pytest.raises(ValueError, match="family OPT: '(opt|fc1)' stands alone; expected a tuple"):
        families.register_family(families.Family(**{**right, **wrong}))
    assert all(family.name != "OPT" for family in families.FAMILIES)

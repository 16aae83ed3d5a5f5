"""Baselines on a quantised base: as on the dense model that its codes stand for, or refused before training."""

import pytest
import torch
from quantised_bases import KINDS, dense, loaded
from tiny import causal_batch, classification_batch
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.quantised import quantised_layers
from rowsft.methods.base import method_class
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets

#: Baselines that PEFT puts on packed layers, with a size where the budget gives none.
BASELINES = {
    "lora": {},
    "dora": {},
    "rslora": {},
    "cla": {},
    "hira": {},
    "miss": {},
    "oft": {},
    "vera": {"r": 4},
    "ia3": {},
}


def attached(model, name, **settings):
    method = method_class(name)(**settings)
    head = ["bert.pooler", "classifier"] if model.config.model_type == "bert" else []
    resolved = method.solve(Budget(like={"method": "lora", "r": 4}), model, Targets(head_modules=head))
    torch.manual_seed(0)
    return method, method.attach(model, resolved)


def losses_of(model, batch, steps=4):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASELINES)
def test_the_loss_falls_as_on_the_dense_model_and_merging_is_exact(llama, name, kind):
    if kind == "int8" and name in ("hira", "miss", "oft", "vera"):
        with pytest.raises(UserError, match=f"method={name}: PEFT cannot put it on a base in 8 bits"):
            attached(loaded(llama, kind), name, **BASELINES[name])
        return
    base = loaded(llama, kind)
    plain, batch = dense(base, torch.float32), causal_batch()
    method, wrapped = attached(base, name, **BASELINES[name])
    _, reference = attached(plain, name, **BASELINES[name])
    losses = losses_of(wrapped, batch)
    assert len(set(losses.tolist())) == len(losses), "a curve that does not move proves nothing"
    torch.testing.assert_close(losses, losses_of(reference, batch), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        merged = method.merge(wrapped)
        assert not quantised_layers(merged)
        torch.testing.assert_close(merged.eval()(**batch).logits, expected, rtol=1e-3, atol=1e-4)


def test_the_head_alone_is_trained_on_a_packed_encoder(bert):
    base, batch = loaded(bert), classification_batch()
    _, wrapped = attached(base, "head")
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{kind}" for name in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    losses = losses_of(wrapped, batch)
    assert losses[-1] < losses[0]
    assert all(isinstance(layer, nn.Linear) for layer in quantised_layers(wrapped).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pissa", "olora", "shira", "entries", "supertuning", "full", "lisa", "galore"])
def test_what_writes_into_the_weight_is_refused_before_training(llama, name, kind):
    with pytest.raises(UserError, match=f"method={name}: .*quantised"):
        attached(loaded(llama, kind), name)

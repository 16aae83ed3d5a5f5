"""A head warmed for scoring: trained as a bare loop trains it, and the model left bit for bit as it was."""

import copy

import pytest
import torch
from tiny import classification_batch, tiny_bert, tiny_llama

import rowsft
from rowsft.errors import UserError
from rowsft.importance.calibration import Calibration
from rowsft.runner.head_warmup import warmed_head

HEADS = ["classifier", "bert.pooler"]


def batches(count):
    return [classification_batch(seed=seed) for seed in range(count)]


def test_the_head_is_trained_alone_as_by_a_bare_loop():
    model = tiny_bert()
    reference = copy.deepcopy(model).requires_grad_(False)
    parameters = [p for name in HEADS for p in reference.get_submodule(name).requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    expected = []
    for batch in batches(4):
        optimizer.zero_grad()
        loss = reference(**batch).loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    with warmed_head(model, HEADS, batches(4), learning_rate=0.01) as losses:
        assert losses == expected
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_stream_are_left_as_they_were(fails):
    model = tiny_bert(hidden_dropout_prob=0.1).train()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    stream = torch.get_rng_state()
    try:
        with warmed_head(model, HEADS, batches(2), learning_rate=0.1):
            assert not torch.equal(model.classifier.weight, before["classifier.weight"])
            assert [parameter.requires_grad for parameter in model.parameters()] == wanted
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_model_without_a_head_is_refused():
    with (
        pytest.raises(UserError, match=r"warm_head: this task trains no fresh head.*warm_head=0"),
        warmed_head(tiny_llama(), [], [], 0.1),
    ):
        pass


class Kept(dict):
    def get(self, key):
        return super().get(str(sorted(key)))

    def put(self, key, scores):
        self[str(sorted(key))] = scores


def test_scores_are_those_of_the_warm_head_and_kept_scores_need_no_warming():
    model, warmings = tiny_bert(), []

    def warmed():
        warmings.append(1)
        return warmed_head(model, HEADS, batches(3), learning_rate=0.05)

    calibration = Calibration(batches(2), Kept(), {}, around=warmed)
    scores, again = (rowsft.score(model, "taylor", calibration) for _ in range(2))
    with warmed_head(model, HEADS, batches(3), learning_rate=0.05):
        expected = rowsft.score(model, "taylor", batches(2))
    fresh = rowsft.score(model, "taylor", batches(2))
    assert len(warmings) == 1
    for name, score in expected.items():
        assert torch.equal(scores[name], score)
        assert torch.equal(again[name], score)
        assert not torch.equal(fresh[name], score)

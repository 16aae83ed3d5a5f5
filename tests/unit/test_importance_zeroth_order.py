"""zo_taylor: its estimate, its perturbed weights, and exactness for a 16-bit model that is never written."""

from copy import deepcopy

import pytest
import torch
from scoring import AXES, CASES, causal_batches, close_axes, item_losses, layers_of, same, score_axes, snapshot, summed
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from transformers import ViTConfig, ViTForImageClassification

from rowsft.errors import UserError
from rowsft.importance import Context
from rowsft.importance.reduction import blocks
from rowsft.importance.zeroth_order import EPSILON, directional_slopes, draw_weights, perturbation


def noise(model, seed, draw):
    """Layer name -> z, laid out as the weight, in the type that a 32-bit sum is taken in."""
    found = {}
    for name, layer in layers_of(model).items():
        found[name] = torch.empty_like(layer.weight, dtype=torch.promote_types(layer.weight.dtype, torch.float32))
        for rows in blocks(layer.weight):
            perturbation(found[name][rows], seed, draw, name, rows.start)
    return found


@torch.no_grad()
def mean_loss(model, batch):
    return float(torch.cat(item_losses(model, batch)).mean())


@torch.no_grad()
def reference_slopes(model, batches, seed, draws):
    """Central differences of the loss of copies whose weights were written in float64."""
    slopes = []
    for draw in range(draws):
        z, losses = noise(model, seed, draw), []
        for sign in (1, -1):
            shifted = deepcopy(model).double()
            for name, layer in layers_of(shifted).items():
                layer.weight += sign * EPSILON * z[name].double()
            losses.append(mean_loss(shifted, batches[draw % len(batches)]))
        slopes.append((losses[0] - losses[1]) / (2 * EPSILON))
    return slopes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_slopes_are_those_of_weights_written_in_float64(case, dtype):
    """In bfloat16 a step of 1e-3 would mostly be lost: weights of 0.02 to 0.1 are 1e-4 to 5e-4 apart there."""
    build, make = CASES[case]
    model, batches = build(dtype), make()
    before = snapshot(model)
    found = directional_slopes(layers_of(model), Context(model, batches, seed=3), draws=4)
    assert same(before, snapshot(model))
    expected = reference_slopes(model, batches, 3, 4)
    # Losses are known to float32's resolution, which the small step magnifies.
    resolution = 4 * torch.finfo(torch.float32).eps * mean_loss(model.double(), batches[0]) / (2 * EPSILON)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=resolution)
    assert max(map(abs, expected)) > 10 * resolution


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_scores_are_made_of_every_draw(build):
    model, batches = build(torch.float64), causal_batches()
    draws, seed = 5, 2
    slopes = directional_slopes(layers_of(model), Context(model, batches, seed=seed), draws)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    readers = [2, 2, 1]
    estimate = dict.fromkeys(layers_of(model), 0)
    for draw, slope in enumerate(slopes):
        share = counts[draw % 3] / sum(counts) / readers[draw % 3]
        for name, z in noise(model, seed, draw).items():
            estimate[name] = estimate[name] + share * slope * z
    elements = {}
    for name, layer in layers_of(model).items():
        product = (layer.weight.detach() * estimate[name]).abs()
        elements[name] = product.T if build is tiny_gpt2 else product
    close_axes(score_axes(model, f"zo_taylor(draws={draws})", batches, seed=seed), summed(elements))


def test_draw_weights_add_up_to_the_shares_of_the_batches():
    weights = draw_weights([0.5, 0.3, 0.2], 7)
    assert sum(weights) == pytest.approx(1)
    assert [sum(weights[batch::3]) for batch in range(3)] == pytest.approx([0.5, 0.3, 0.2])
    assert draw_weights([0.5, 0.3, 0.2], 2) == pytest.approx([0.5 / 0.8, 0.3 / 0.8])


def test_the_mean_over_draws_tends_to_the_gradient():
    """For a linear loss the slope is exactly z·g, and the mean over n draws of slope * z is g within |g| / sqrt(n)."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2, bias=False).double()
            self.config = None

        def forward(self, x, labels):
            return type("Output", (), {"loss": (self.layer(x) * labels).mean()})

    model = Linear()
    batches = [
        {"x": torch.randn(n, 4, dtype=torch.float64), "labels": torch.randn(n, 2, dtype=torch.float64)} for n in (1, 5)
    ]
    total = sum((model.layer(b["x"]) * b["labels"]).mean() * len(b["x"]) for b in batches) / 6
    gradient = torch.autograd.grad(total, model.layer.weight)[0]
    expected = (model.layer.weight * gradient).abs().sum(1).detach().float()
    found = score_axes(model, "zo_taylor(draws=1000)", batches)["layer"]["rows"]
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.02)


def test_perturbations_depend_on_seed_draw_layer_and_block():
    def drawn(*key):
        into = torch.empty(40, 30)
        perturbation(into, *key)
        return into

    base = drawn(0, 0, "a", 0)
    assert torch.equal(base, drawn(0, 0, "a", 0))
    for other in [(1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 8)]:
        assert not torch.equal(base, drawn(*other))
    assert abs(float(base.mean())) < 0.1
    assert abs(float(base.std()) - 1) < 0.1


def test_layers_that_share_a_weight_are_moved_together():
    model, batches = tiny_llama(torch.float64), causal_batches()
    first, second = (model.model.layers[i].self_attn.q_proj for i in (0, 1))
    second.weight = first.weight
    scores = score_axes(model, "zo_taylor(draws=3)", batches)
    for axis in AXES:
        assert torch.equal(*(scores[f"model.layers.{i}.self_attn.q_proj"][axis] for i in (0, 1)))


def test_a_16_bit_model_that_reads_a_weights_type_is_widened_too():
    """ViT casts its pixels to the type of its first convolution."""
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config).to(torch.bfloat16).eval()
    batch = {"pixel_values": torch.randn(3, 3, 8, 8).bfloat16(), "labels": torch.tensor([0, 1, 1])}
    before = snapshot(model)
    found = directional_slopes(layers_of(model), Context(model, [batch]), draws=2)
    assert same(before, snapshot(model))
    reference = [{**batch, "pixel_values": batch["pixel_values"].double()}]
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(reference_slopes(model, reference, 0, 2)), rtol=1e-2, atol=2e-3
    )


def test_no_draw_at_all_is_refused():
    with pytest.raises(UserError, match="draws must be at least 1"):
        score_axes(tiny_bert(), "zo_taylor(draws=0)", CASES["bert"][1]())

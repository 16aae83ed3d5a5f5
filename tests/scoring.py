"""What the tests of importance metrics share: models, uneven batches, and losses and gradients by plain autograd."""

import random

import numpy
import torch
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.importance import Context, score_layers
from rowsft.selection.targets import Targets, eligible_layers

AXES = ("rows", "columns")


def causal_batches():
    """Three batches with very different numbers of labelled tokens, all padded."""
    batches = [causal_batch(2, 9, seed=1), causal_batch(3, 17, seed=2), causal_batch(2, 5, seed=3)]
    batches[0]["labels"][:, :6] = -100
    return batches


def classification_batches():
    return [classification_batch(5, 9, seed=1), classification_batch(2, 7, seed=2)]


CASES = {
    "llama": (tiny_llama, causal_batches),
    "gpt2": (tiny_gpt2, causal_batches),
    "bert": (tiny_bert, classification_batches),
}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return eligible_layers(model, Targets())


def score_axes(model, importance, batches=(), axes=AXES, **settings):
    """Scores along both axes of every eligible layer."""
    return score_layers(layers_of(model), importance, Context(model, batches, **settings), axes)


def few_draws(importance: str) -> str:
    """The metric with two perturbations where it draws any: what is tested does not depend on how many."""
    return importance.replace("zo_taylor", "zo_taylor(draws=2)")


def oriented(layer: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor laid out as the weight, as (d_out, d_in)."""
    return tensor.T if isinstance(layer, Conv1D) else tensor


def item_losses(model: nn.Module, batch: dict) -> list[torch.Tensor]:
    """The cross-entropies of the labelled items of each sample, from the logits."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    labels = batch["labels"]
    if labels.dim() == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    else:
        logits, labels = logits.unsqueeze(1), labels.unsqueeze(1)
    losses = []
    for of_sample, wanted in zip(logits, labels, strict=True):
        kept = wanted != -100
        losses.append(-torch.log_softmax(of_sample[kept], dim=-1)[torch.arange(int(kept.sum())), wanted[kept]])
    return losses


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Layer name -> the gradient of `loss` as (d_out, d_in)."""
    layers = layers_of(model)
    found = torch.autograd.grad(loss, [layer.weight for layer in layers.values()], retain_graph=True)
    return {name: oriented(layers[name], gradient) for name, gradient in zip(layers, found, strict=True)}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: oriented(layer, layer.weight.detach()) for name, layer in layers_of(model).items()}


def mean_gradient(model: nn.Module, batches: list[dict]) -> dict[str, torch.Tensor]:
    """The gradient of the mean over all labelled items of all batches."""
    items = torch.cat([losses for batch in batches for losses in item_losses(model, batch)])
    return gradients(model, items.mean())


def sample_gradients(model: nn.Module, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
    """The gradients of each sample's mean loss; samples without a labelled item have none."""
    return [gradients(model, losses.mean()) for batch in batches for losses in item_losses(model, batch) if len(losses)]


def summed(elements: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Layer name -> axis -> elementwise quantities (d_out, d_in), summed along the axis."""
    return {name: {"rows": values.sum(1), "columns": values.sum(0)} for name, values in elements.items()}


def close(scores, expected, rtol=1e-6, atol=0.0):
    """Two dictionaries of scores."""
    assert scores.keys() == expected.keys()
    for name in scores:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], expected[name].float(), rtol=rtol, atol=atol)


def close_axes(scores, expected, rtol=1e-6, atol=0.0):
    assert scores.keys() == expected.keys()
    for name in scores:
        close(scores[name], expected[name], rtol, atol)


def snapshot(model):
    """All of a model and of the random streams that scoring must leave alone."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "addresses": [tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]],
        "identities": [id(tensor) for module in model.modules() for tensor in module._parameters.values()],
        "grads": {
            n: None if p.grad is None else (p.grad.data_ptr(), p.grad.clone()) for n, p in model.named_parameters()
        },
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "module_hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "training": [module.training for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state(),
        "python": random.getstate(),
    }


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, numpy.ndarray):
        return numpy.array_equal(left, right)
    return left == right

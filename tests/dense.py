"""The plain model with adapters' values added by hand: what an adapted model must compute, and its gradients."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from peft import PeftModel
from rows import (
    FAMILIES,
    adapt,
    add_update,
    family,
    layer_ids,
    logits,
    others_of,
    out_rows,
    random_ids,
    row_layers,
    shake,
)
from torch import nn

from rowsft import RowSFTConfig
from rowsft.errors import UserError

KINDS = ("row_sft_delta", "row_sft_bias", "row_sft_column_delta")
DEFAULT = ("default",)
#: (layer, kind, adapter) -> the tensor of that trained value, or its gradient.
Values = dict[tuple[str, str, str], torch.Tensor]


def values(tuned: nn.Module, adapters: Iterable[str] = DEFAULT) -> Values:
    """The parameters that the adapters train."""
    return {
        (name, kind, adapter): getattr(layer, kind)[adapter]
        for name, layer in row_layers(tuned).items()
        for kind in KINDS
        for adapter in adapters
        if adapter in getattr(layer, kind)
    }


def dense_model(plain: nn.Module, tuned: nn.Module, adapters: Iterable[str] = DEFAULT) -> nn.Module:
    """A copy of the plain model with the adapters' values added, every parameter trainable."""
    dense = copy.deepcopy(plain).requires_grad_(True)
    for name, layer in row_layers(tuned).items():
        for adapter in adapters:
            add_update(dense.get_submodule(name), layer, adapter)
    return dense


def dense_gradients(dense: nn.Module, tuned: nn.Module, adapters: Iterable[str] = DEFAULT) -> Values:
    """The entries of the dense model's gradients (in `.grad`) that each trained value stands for."""
    expected = {}
    for name, kind, adapter in values(tuned, adapters):
        layer = dense.get_submodule(name)
        rows, columns = layer_ids(row_layers(tuned)[name], adapter)
        if kind == "row_sft_bias":
            gradient = layer.bias.grad[rows]
        else:
            full = out_rows(layer, layer.weight.grad)
            gradient = full[rows] if kind == "row_sft_delta" else full[others_of(rows, len(full))][:, columns]
        expected[name, kind, adapter] = gradient.clone()
    return expected


def loss_on(*batches: dict) -> Callable[[nn.Module], torch.Tensor]:
    """The sum of a model's losses on the batches."""
    return lambda model: sum(model(**batch).loss for batch in batches)


def embedded(model: nn.Module, batch: dict) -> dict:
    """The batch with its tokens' embeddings, a leaf that requires a gradient, in the place of its tokens."""
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    return {**{key: value for key, value in batch.items() if key != "input_ids"}, "inputs_embeds": embeds}


@dataclass
class Case:
    """A plain model and the same one with an adapter that is not zero; two batches for them."""

    family: str
    plain: nn.Module
    tuned: PeftModel
    batch: dict
    other_batch: dict

    def dense(self, adapters: Iterable[str] = DEFAULT) -> nn.Module:
        """The plain model with the adapters' values as they are now."""
        return dense_model(self.plain, self.tuned, adapters)

    def logits(self, batch: dict | None = None, adapters: Iterable[str] = DEFAULT) -> torch.Tensor:
        """What the adapted model must compute now."""
        return logits(self.dense(adapters), batch or self.batch)

    def gradients(self, loss: Callable[[nn.Module], torch.Tensor], adapters: Iterable[str] = DEFAULT) -> Values:
        """What the gradients of `loss` with the values as they are now must be."""
        dense = self.dense(adapters)
        loss(dense).backward()
        return dense_gradients(dense, self.tuned, adapters)

    def check_gradients(self, expected: Values, times: int = 1) -> None:
        """Assert that the `.grad` of every value is `times` the expected one, and forget it."""
        held = values(self.tuned, {adapter for _, _, adapter in expected})
        assert held.keys() == expected.keys()
        for key, parameter in held.items():
            assert parameter.grad is not None, f"{key} has no gradient"
            torch.testing.assert_close(
                parameter.grad, times * expected[key], rtol=1e-9, atol=1e-13, msg=_difference_message(key)
            )
        self.tuned.zero_grad()

    def check_logits(self, batch: dict | None = None, adapters: Iterable[str] = DEFAULT) -> None:
        """Assert that the adapted model computes, without a graph, what it must."""
        batch = batch or self.batch
        torch.testing.assert_close(logits(self.tuned, batch), self.logits(batch, adapters), rtol=1e-9, atol=1e-11)

    def is_clean(self) -> bool:
        """Whether every parameter of the base is, bit for bit, what it is in the plain model."""
        return base_is(self.tuned, self.plain)

    def check_healthy(self) -> None:
        """Assert that the base is clean, and stays so through a right forward and a right training step."""
        assert self.is_clean()
        self.check_logits()
        assert self.is_clean()
        self.tuned.zero_grad()
        expected = self.gradients(loss_on(self.batch))
        self.tuned(**self.batch).loss.backward()
        self.check_gradients(expected)
        assert self.is_clean()


def start(name: str = "llama", channel: str = "rows", dtype: torch.dtype = torch.float64, **overrides) -> Case:
    """A family's model in `dtype`, adapted on the usual target modules; overrides of the model's config."""
    plain, batch, targets = family(name, dtype, **overrides)
    tuned = adapt(copy.deepcopy(plain), targets, channel=channel)
    shake(tuned)
    return Case(name, plain, tuned, batch, FAMILIES[name][1](seed=2))


def add_other(case: Case, channel: str = "rows") -> None:
    """Add an adapter "other" that is not zero and shares some rows (columns) of every layer with the first."""
    _, _, targets = FAMILIES[case.family]
    ids = random_ids(case.plain, targets, channel, 4, seed=0)
    own = random_ids(case.plain, targets, channel, 4, seed=5)
    ids = {
        kind: {name: torch.cat([ids[kind][name][:2], own[kind][name]]).unique() for name in ids[kind]} for kind in ids
    }
    case.tuned.add_adapter("other", RowSFTConfig(target_modules=targets, channel=channel, **ids))
    shake(case.tuned, "other", seed=3)


def checkpoint(model: nn.Module, reentrant: bool) -> None:
    """Train mode with gradient checkpointing of the given kind, down to the embeddings."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()


def base_is(tuned: nn.Module, plain: nn.Module) -> bool:
    """Whether the adapted model's base parameters, as they lie in memory, equal the plain model's bit for bit."""
    expected = dict(plain.named_parameters())
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in tuned.named_parameters()
        if "row_sft_" not in name
    }
    assert base.keys() == expected.keys()
    return all(torch.equal(base[name], expected[name]) for name in expected)


def ran(action: Callable[[], object]) -> bool:
    """Run it; False where it was refused with an error, which some orders may be: a wrong result never is right."""
    try:
        action()
    except (RuntimeError, UserError):
        return False
    return True


def _difference_message(key: tuple) -> Callable[[str], str]:
    return lambda message: f"gradient of {key}: {message}"

"""What every method is held to on two-layer models: where it starts, what it counts, trains, saves, loads and merges.

A test file of a method calls the checks with its name and settings; `check_curve` takes PEFT used by hand as reference.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn

from rowsft.methods.base import ResolvedMethod, method_class, selected
from rowsft.methods.plain_method import head_parameters
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets

HEAD = ["classifier", "bert.pooler"]
CASES: dict[str, tuple[Callable, Callable, Targets]] = {
    "llama": (tiny_llama, causal_batch, Targets()),
    "gpt2": (tiny_gpt2, causal_batch, Targets()),
    "bert": (tiny_bert, classification_batch, Targets(head_modules=HEAD)),
}
BUDGET = Budget(params=3000)
RATE = 1e-2


def prepared(
    case: str, name: str, budget: Budget = BUDGET, **settings
) -> tuple[Any, ResolvedMethod, Any, nn.Module, dict]:
    """A method attached to a fresh model: (method, resolved, wrapped, untouched copy of the model, batch)."""
    build, make, targets = CASES[case]
    model, batch = build(), make()
    base = deepcopy(model)
    method = method_class(name)(**settings)
    resolved = method.solve(budget, model, targets)
    resolved = selected(method, model, resolved, [batch])
    return method, resolved, method.attach(model, resolved), base, batch


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained_parameters(model), lr=rate, weight_decay=0.0)


def train(model: nn.Module, batch: dict, steps: int = 3, optimizer: torch.optim.Optimizer | None = None) -> list[float]:
    """Losses of a few steps on one batch."""
    optimizer = optimizer or adamw(model)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def check_step_zero(case: str, name: str, **settings) -> None:
    """The attached model computes what the base computes."""
    _, _, wrapped, base, batch = prepared(case, name, **settings)
    torch.testing.assert_close(logits(wrapped, batch), logits(base, batch), rtol=1e-5, atol=1e-6)


def check_counts(case: str, name: str, expected: int | None = None, **settings) -> None:
    """What is resolved is what is trained, as many parameters as the closed form `expected` says."""
    method, resolved, wrapped, base, _ = prepared(case, name, **settings)
    head = head_parameters(base, CASES[case][2].head_modules)
    trained = sum(parameter.numel() for parameter in trained_parameters(wrapped))
    assert method.trainable(wrapped) == {"adapter": resolved.achieved, "head": head, "total": trained}
    assert trained == (resolved.achieved or 0) + head
    if expected is not None:
        assert resolved.achieved == expected


def check_only_the_trainable_moves(case: str, name: str, **settings) -> None:
    _, _, wrapped, base, batch = prepared(case, name, **settings)
    before = {n: p.clone() for n, p in wrapped.named_parameters()}
    train(wrapped, batch)
    moved = {n for n, p in wrapped.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert not torch.allclose(logits(wrapped, batch), logits(base, batch), atol=1e-4)


def check_saves_and_loads(case: str, name: str, folder: Path, **settings) -> None:
    """A saved adapter gives the same outputs on a fresh base, through PEFT alone and through the method."""
    method, resolved, wrapped, base, batch = prepared(case, name, **settings)
    train(wrapped, batch)
    expected = logits(wrapped, batch)
    method.save(wrapped, folder)
    for loaded in (PeftModel.from_pretrained(deepcopy(base), folder), method.load(deepcopy(base), resolved, folder)):
        torch.testing.assert_close(logits(loaded, batch), expected, rtol=1e-5, atol=1e-6)


def check_merge(case: str, name: str, **settings) -> None:
    """Merging gives the plain model with the outputs of the adapted one."""
    method, _, wrapped, base, batch = prepared(case, name, **settings)
    if method.trains:
        train(wrapped, batch)
    expected = logits(wrapped, batch)
    merged = method.merge(wrapped)
    assert type(merged) is type(base)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in base.named_parameters()]
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)


def check_curve(
    case: str,
    name: str,
    by_hand: Callable[[nn.Module, ResolvedMethod], nn.Module],
    of_method: Callable[[Any, nn.Module], torch.optim.Optimizer] = lambda method, model: adamw(model),
    of_hand: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    steps: int = 6,
    seeds: Iterable[int] = (0,),
    **settings,
) -> None:
    """The losses of the method are those of PEFT used by hand from the same random state.

    by_hand: wraps a fresh model; it is told what the budget was solved to, and nothing else. of_method, of_hand: the
    optimizers.
    """
    for seed in seeds:
        build, make, targets = CASES[case]
        model, batch = build(), make()
        method = method_class(name)(**settings)
        resolved = selected(method, model, method.solve(BUDGET, model, targets), [batch])
        reference = build()
        torch.manual_seed(seed)
        wrapped = method.attach(model, resolved).train()
        torch.manual_seed(seed)
        by_peft = by_hand(reference, resolved).train()
        torch.manual_seed(seed)
        losses = train(wrapped, batch, steps, of_method(method, wrapped))
        torch.manual_seed(seed)
        expected = train(by_peft, batch, steps, of_hand(by_peft))
        assert len(set(expected)) == steps, "a curve that does not move proves nothing"
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=1e-7)

"""What to change when a card does not hold a run: the usual ways out, each planned anew."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rowsft.config.forgetting import ForgettingSettings
from rowsft.plan import Plan
from rowsft.plan.fit import MIB, Card


def too_large(plan: Plan, card: Card) -> str:
    """Which stages of the run the card does not hold, and which it does."""
    needs = [f"{stage} needs {demand.card_bytes / MIB:,.0f} MiB" for stage, demand in _over(plan, card)]
    held = [stage for stage, demand in plan.demands.items() if demand.fits(card)]
    return f"{card} does not hold it: {', '.join(needs)}" + (f"; {' and '.join(held)}: fits" if held else "")


def lighter_evaluation(plan: Plan, again: Callable[[Mapping[str, Any]], Plan]) -> str | None:
    """How many examples at a time may be evaluated within what training needs; None where evaluating needs no more.

    again: plans with changed trainer settings, two of them at most.
    """
    evaluating, training = plan.demands.get("evaluating"), plan.demands["training"]
    count = plan.run.settings.eval_batch_size
    if evaluating is None or evaluating.tensor_bytes <= training.tensor_bytes or count == 1:
        return None
    one = again({"eval_batch_size": 1})
    least = one.demands["evaluating"].tensor_bytes
    # Along a straight line, down to a power of two.
    each = (evaluating.tensor_bytes - least) / (count - 1)
    most = 1 + int(max(0, training.tensor_bytes - least) / each)
    fewer = 2 ** (most.bit_length() - 1)
    planned = again({"eval_batch_size": fewer}) if fewer > 1 else one
    needs = planned.demands["evaluating"].card_bytes / MIB
    return (
        f"Evaluating {count} examples at a time needs more than training; trainer.eval_batch_size={fewer} changes no "
        f"result: evaluating needs {needs:,.0f} MiB then, the run {planned.demand.card_bytes / MIB:,.0f} MiB."
    )


def _over(plan: Plan, card: Card) -> list[tuple[str, Any]]:
    return [(stage, demand) for stage, demand in plan.demands.items() if not demand.fits(card)]


def memory_suggestions(plan: Plan, again: Callable[[Mapping[str, Any]], Plan], card: Card) -> list[str]:
    """One line for each change of the trainer that saves memory, with what it comes to.

    again: plans with changed trainer settings. Cheapest change first; it ends with the first that fits.
    """
    settings = plan.run.settings
    changes: dict[str, Any] = {}
    lines = []
    steps: list[dict[str, Any]] = []
    if not settings.gradient_checkpointing:
        steps.append({"gradient_checkpointing": True})
    size = settings.batch_size
    if settings.eval_batch_size > size:
        # It changes no result.
        steps.insert(0, {"eval_batch_size": size})
    if plan.forgetting and settings.forgetting.batch_size > 1:
        steps.insert(0, {"forgetting": replace(settings.forgetting, batch_size=1)})
    while size > 1:
        size = max(1, size // 4)
        spread = settings.batch_size // size * settings.gradient_accumulation
        steps.append({"batch_size": size, "gradient_accumulation": spread})
        if settings.eval_batch_size > size:
            steps[-1]["eval_batch_size"] = size
    for step in steps:
        changes |= step
        planned = again(changes)
        settings_changed = " ".join(_override(name, value) for name, value in changes.items())
        needs = planned.demand.card_bytes / MIB
        fits = planned.demand.fits(card)
        lines.append(f"{settings_changed}: needs {needs:,.0f} MiB" + (f", fits {card.name}" if fits else ""))
        if fits:
            return lines
    biggest = max(parts := planned.step.peak.parts, key=lambda part: parts[part]) if steps else None
    if biggest in ("gradients", "optimizer_state", "trainable_weights"):
        lines.append(
            "what is left is the trained weights and their optimizer state: train fewer (method=row_sft, lora)"
        )
    else:
        lines.append(
            "what is left is the base model itself and one example: lower task.max_length, or take a smaller model"
        )
    return lines


def _override(name: str, value: Any) -> str:
    """A change of the trainer as it is written on a command line."""
    if isinstance(value, ForgettingSettings):
        return f"trainer.{name}.batch_size={value.batch_size}"
    return f"trainer.{name}={str(value).lower()}"

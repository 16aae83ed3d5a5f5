"""What to change when no card holds a run: the usual ways out, each planned anew."""

from collections.abc import Callable, Mapping
from typing import Any

from rowsft.plan import Plan

GB = 10**9


def ways_out(plan: Plan, again: Callable[[Mapping[str, Any]], Plan], card_gb: float) -> list[str]:
    """One line for each change of the trainer that saves memory, with what it comes to.

    again: plans with changed trainer settings. Cheapest change first; it ends with the first that fits.
    """
    settings = plan.scene.settings
    changes: dict[str, Any] = {}
    lines = []
    steps = []
    if not settings.gradient_checkpointing:
        steps.append({"gradient_checkpointing": True})
    size = settings.batch_size
    if settings.eval_batch_size > size:
        # It changes no result.
        steps.insert(0, {"eval_batch_size": size})
    while size > 1:
        size = max(1, size // 4)
        spread = settings.batch_size // size * settings.gradient_accumulation
        steps.append({"batch_size": size, "gradient_accumulation": spread})
        if settings.eval_batch_size > size:
            steps[-1]["eval_batch_size"] = size
    for step in steps:
        changes |= step
        planned = again(changes)
        said = " ".join(f"trainer.{name}={str(value).lower()}" for name, value in changes.items())
        needs = planned.demand.card_bytes / GB
        fits = planned.demand.fits(card_gb)
        lines.append(f"{said}: needs {needs:.1f} GB" + (f", fits {card_gb:g} GB" if fits else ""))
        if fits:
            return lines
    biggest = max(planned.step.peak.parts, key=planned.step.peak.parts.get) if steps else None
    if biggest in ("gradients", "optimizer_state", "trainable_weights"):
        lines.append(
            "what is left is the trained weights and their optimizer state: train fewer (method=row_sft, lora)"
        )
    else:
        lines.append(
            "what is left is the base model itself and one example: lower task.max_length, or take a smaller model"
        )
    return lines

"""The paper's question for one model and one card, planned: method by method at equal parameter budget."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.plan import Plan, plan
from rowsft.plan.fit import Card, Demand
from rowsft.plan.lengths import Lengths

# What is compared unless the command names others: a title, and the overrides that make it.
CONTESTANTS = {
    "row-SFT, rows": ["method=row_sft"],
    "row-SFT, columns": ["method=row_sft", "method.channel=columns"],
    "LoRA": ["method=lora"],
    "DoRA": ["method=dora"],
    "full fine-tuning": ["method=full"],
}
# Searches end here: longer and larger than anybody trains.
MOST_EXAMPLES = 4096
MOST_TOKENS = 2**20


@dataclass(frozen=True)
class Entry:
    """A method's plan, and what the card holds of it; None where not even one example fits."""

    title: str
    plan: Plan
    largest_batch: int | None
    longest_tokens: int | None


def compare_methods(overrides: Sequence[str], card: Card, lengths: Lengths | None = None) -> Iterator[Entry]:
    """One entry a method; `overrides` without a method of their own. Searches are for training alone."""
    for title, chosen in CONTESTANTS.items():
        yield entry_of(title, [*overrides, *chosen], card, lengths)


def entry_of(title: str, overrides: Sequence[str], card: Card, lengths: Lengths | None = None) -> Entry:
    """Plan one method, and search for the largest batch at its length and the longest text at its batch."""
    config = compose(list(overrides))
    settings = trainer_settings(config)
    whole = plan(config, settings, lengths=lengths)

    def at(batch_size: int | None = None, length: int | None = None) -> Demand:
        changed = config.copy()
        tokens = whole.run.lengths
        if length is not None:
            changed.task.max_length = max(length, changed.task.max_length)
            tokens = tokens.at(length)
        sizes = {} if batch_size is None else {"batch_size": batch_size}
        return plan(changed, settings, sizes, training_only=True, lengths=tokens).demand

    capacity = card.memory_bytes
    positions = whole.run.positions
    longest = min(MOST_TOKENS, positions or MOST_TOKENS)
    return Entry(
        title,
        whole,
        largest(lambda count: at(batch_size=count).card_bytes, capacity, MOST_EXAMPLES),
        largest(lambda tokens: at(length=tokens).card_bytes, capacity, longest, least=8),
    )


def largest(cost: Callable[[int], int], capacity: float, most: int, least: int = 1) -> int | None:
    """The largest count from `least` to `most` whose cost stays within `capacity`; None where not even `least` does.

    cost: grows with the count, nearly in proportion; so the search aims along a straight line, and halves what is left
    every other time, in case the cost has steps or bends.
    """
    low, high = least, most + 1
    known = {low: cost(low)}
    if known[low] > capacity:
        return None
    reach = min(2 * least, most)
    if reach > low:
        known[reach] = cost(reach)
        if known[reach] > capacity:
            high = reach
        else:
            low = reach
    turn = 0
    while high - low > max(1, low // 256):
        aim = _along_line(known, low, capacity) if turn < 2 or turn % 2 else (low + high) // 2
        turn += 1
        count = min(max(aim, low + 1), high - 1)
        known[count] = cost(count)
        if known[count] > capacity:
            high = count
        else:
            low = count
    return low


def _along_line(known: dict[int, int], low: int, capacity: float) -> int:
    """Where the line through the two largest known counts that fit, or the two nearest, meets the capacity."""
    near = sorted(known, key=lambda count: abs(count - low))[:2]
    if len(near) < 2:
        return low + 1
    first, second = sorted(near)
    slope = (known[second] - known[first]) / (second - first)
    return low + int((capacity - known[low]) / slope) if slope > 0 else 2 * low

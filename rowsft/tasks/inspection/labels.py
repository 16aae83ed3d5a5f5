"""What the labels of a split are: how often each class occurs, or the range of numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """counts: how often each class, or each position of the right option, occurs. least, mean, most: of numbers."""

    counts: dict[str, int] | None = None
    least: float | None = None
    mean: float | None = None
    most: float | None = None


def labels_of(examples: Sequence[dict], classes: Sequence[str] | None) -> Labels | None:
    """Return what the examples' `label` says; None where they have none that is a number.

    classes: the name of every class index, each of which is counted even if it does not occur.
    """
    values = [example.get("label") for example in examples]
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers or len(numbers) < len(values):
        return None
    if any(isinstance(value, float) for value in numbers):
        return Labels(least=float(min(numbers)), mean=sum(numbers) / len(numbers), most=float(max(numbers)))
    counted = Counter(int(value) for value in numbers)
    indices = range(len(classes)) if classes else sorted(counted)
    return Labels(counts={label_name(index, classes): counted[index] for index in indices})


def label_name(value: object, classes: Sequence[str] | None) -> str:
    """Return the name of the class of that index; a value that is no index of `classes` as it is."""
    if classes and isinstance(value, int) and 0 <= value < len(classes):
        return str(classes[value])
    return str(value)

"""Examples of more tokens than task.max_length: cut, dropped or refused, and counted."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rowsft.errors import UserError, shortened

CHOICES = ("truncate", "drop", "refuse")
# More than any tokenizer puts around one or two texts.
_AROUND = 8
_AT_ONCE = 1000


def checked(choice: Any) -> str:
    """task.long_examples. Raises UserError for another word."""
    if not isinstance(choice, str) or choice not in CHOICES:
        raise UserError(f"task.long_examples={shortened(choice)}: expected {', '.join(CHOICES)}")
    return choice


def may_exceed(texts: Iterable[str], max_length: int) -> bool:
    """Whether these texts together can have more tokens than that: one of ASCII has at most a token a character."""
    given = list(texts)
    return not all(map(str.isascii, given)) or sum(map(len, given)) + _AROUND > max_length


def longer(
    examples: Sequence[dict],
    texts: Callable[[dict], Iterable[str]],
    max_length: int,
    counts: Callable[[list[dict]], list[int]],
) -> list[bool]:
    """Whether each example has more than `max_length` tokens by `counts`, which cuts nothing.

    texts: those of an example. Examples that cannot be too long are not tokenised.
    """
    long = [False] * len(examples)
    candidates = [number for number, example in enumerate(examples) if may_exceed(texts(example), max_length)]
    for first in range(0, len(candidates), _AT_ONCE):
        numbers = candidates[first : first + _AT_ONCE]
        for number, tokens in zip(numbers, counts([examples[number] for number in numbers]), strict=True):
            long[number] = tokens > max_length
    return long


def kept(examples: list[dict], long: Sequence[bool], choice: str, split: str, limit: str) -> list[dict]:
    """The examples of a split that are left. limit: what `long` ones exceed, in words.

    Raises UserError where one is too long under `refuse`, or none is left.
    """
    if choice == "truncate" or not any(long):
        return examples
    number = f"{sum(long):,} of {len(examples):,} {split} examples"
    if choice == "refuse":
        first = examples[long.index(True)]
        raise UserError(
            f"task.long_examples=refuse: {number} have more than {limit} tokens, the first of "
            f"them {shortened(first['id'])}; raise task.max_length, or set task.long_examples=truncate or drop"
        )
    left = [example for example, is_long in zip(examples, long, strict=True) if not is_long]
    if not left:
        raise UserError(f"task.long_examples=drop: all {number} have more than {limit} tokens; raise it")
    return left

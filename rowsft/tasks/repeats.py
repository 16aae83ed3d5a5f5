"""Texts that occur more than once: within a split, and in two splits, where they make a test score mean less."""

from collections.abc import Sequence
from hashlib import blake2b

from rowsft.tasks.splits import NAMES, fold


def keys(*columns: Sequence[str]) -> list[bytes]:
    """One key a row of these columns: equal where the rows' texts are, case and blanks aside (16 bytes of BLAKE2b)."""
    if len(columns) == 1:
        return [_digest(fold(text)) for text in columns[0]]
    # Folding leaves no line break in a text.
    return [_digest("\n".join(map(fold, texts))) for texts in zip(*columns, strict=True)]


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def repeats(split_keys: dict[str, list[bytes]]) -> dict[str, dict[str, int]]:
    """How many rows of each split repeat an earlier one of it, and how many of `b` occur in `a` for each pair "b in a".

    The pairs are validation in train, test in train, test in validation.
    """
    distinct = {name: set(keys) for name, keys in split_keys.items()}
    shared = {}
    for later in NAMES[1:]:
        for earlier in NAMES[: NAMES.index(later)]:
            shared[f"{later} in {earlier}"] = sum(key in distinct[earlier] for key in split_keys[later])
    return {
        "within": {name: len(split_keys[name]) - len(distinct[name]) for name in NAMES},
        "across": shared,
    }


def warnings(repeated: dict[str, dict[str, int]], sizes: dict[str, int], text: str) -> list[str]:
    """One line about each kind of repetition there is; `text` names what is compared, such as "text"."""
    lines = []
    for pair, count in repeated["across"].items():
        later, earlier = pair.split(" in ")
        if count:
            lines.append(
                f"{count:,} of {sizes[later]:,} {later} rows have a {text} that {earlier} holds too (case and blanks "
                f"aside): a score on {later} then measures memory as well; drop them from one of the two"
            )
    within = {name: count for name, count in repeated["within"].items() if count}
    if within:
        counts = ", ".join(f"{count:,} of {sizes[name]:,} in {name}" for name, count in within.items())
        lines.append(f"rows that repeat the {text} of another row of their split (case and blanks aside): {counts}")
    return lines

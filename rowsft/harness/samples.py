"""What is kept of the harness's examples: which document it was and its metrics; neither prompts nor answers."""

from collections.abc import Iterable
from numbers import Real
from typing import Any

#: Digits of a document's hash that are kept: enough to tell the documents of a task apart.
_DIGITS = 16


def by_document(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one dict a document, by its number.

    id: its number in the task. doc: the first 16 hexadecimal digits of the harness's hash of it. The metrics are under
    their keys in the result (acc,none): a number, or the two that a metric of all examples is made of ([reference,
    prediction] for f1, [log-likelihood, words] for word_perplexity). What is made of anything else is left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        document = {"id": sample["doc_id"], "doc": sample["doc_hash"][:_DIGITS]}
        row = rows.setdefault(sample["doc_id"], document)
        for metric in sample["metrics"]:
            value = _compact(sample[metric])
            if value is not None:
                row[f"{metric},{sample['filter']}"] = value
    return list(rows.values())


def _compact(value: Any) -> Any:
    if isinstance(value, tuple | list) and len(value) == 2 and all(_is_number(part) for part in value):
        return [_plain(part) for part in value]
    return _plain(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    # A number of torch, or of numpy, may stand in an array of its own. So may a text of numpy.
    return isinstance(value, Real) or (getattr(value, "shape", None) == () and not isinstance(value, str))


def _plain(value: Any) -> int | float:
    number = value.item() if hasattr(value, "item") else value
    return int(number) if isinstance(number, bool) or float(number).is_integer() else float(number)

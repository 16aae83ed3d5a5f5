"""The settings of multiple choice, checked: each function returns what its key of `task` means, or raises UserError."""

from collections.abc import Collection
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.choice_scores import NORMS

#: What may be tuned and reported by, and whether more of it is better.
METRICS = {
    **{f"accuracy_{name}": True for name in (*NORMS, "generated")},
    "loss": False,
    "bits_per_byte": False,
}
#: How a question stands before the model: as its parts in a prompt of the task's own, or as an instruction.
FIELDS, INSTRUCTION = "fields", "instruction"


def form(value: Any) -> str:
    """task.form."""
    if value not in (FIELDS, INSTRUCTION):
        raise UserError(f"task.form={shortened(value)}: expected {FIELDS} or {INSTRUCTION}")
    return value


def delimiter(value: Any, prompt: str) -> str:
    """task.delimiter, which stands after task.prompt."""
    if not isinstance(value, str):
        raise UserError(f"task.delimiter={shortened(value)}: expected text, such as ' '")
    value = value.replace("\\n", "\n")
    if value and not value.strip() and prompt.replace("\\n", "\n")[-1:].isspace():
        raise UserError(
            f"task.prompt={shortened(repr(prompt))}: ends with white space, and task.delimiter={value!r} adds "
            "more; drop one of them (task.delimiter='')"
        )
    return value


def domain_prompt(value: Any) -> str | None:
    """task.pmi."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"task.pmi={shortened(value)}: expected text, such as 'Answer:', or null")
    return None if value is None else value.replace("\\n", "\n")


def metric(value: Any, known: Collection[str], pmi: Any, max_new_tokens: Any) -> str:
    """task.primary_metric, one of `known`; some are there with another setting alone."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f"task.primary_metric={shortened(value)}: no such metric; expected {', '.join(known)}")
    if value == "accuracy_pmi" and pmi is None:
        raise UserError("task.primary_metric=accuracy_pmi: needs a domain prompt; set task.pmi, such as 'Answer:'")
    if value == "accuracy_generated" and max_new_tokens is None:
        raise UserError(
            "task.primary_metric=accuracy_generated: is of what the model writes; set task.max_new_tokens, such as 32"
        )
    return value

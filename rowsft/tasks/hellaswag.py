"""HellaSwag: endings of a description of what happens, without the marks of the pages that it was taken from."""

import re
from dataclasses import replace

from rowsft.tasks.choice_columns import Labels
from rowsft.tasks.multiple_choice import MultipleChoice
from rowsft.tasks.reading import Table
from rowsft.tasks.template import Template

_MARK = re.compile(r"\[.*?\]")


class HellaSwag(MultipleChoice):
    """As MultipleChoice, with prompts and endings cleaned as lm-evaluation-harness cleans them.

    The second sentence of a `ctx`, what follows its `ctx_a`, begins with a capital.
    """

    extra_columns = ("ctx_a",)

    def _examples(self, split: str, table: Table, prompt: Template, labels: Labels) -> list[dict]:
        if "ctx_a" in table.columns:
            sentences = map(_capitalised, table.columns["ctx"], table.columns["ctx_a"])
            table = replace(table, columns={**table.columns, "ctx": list(sentences)})
        examples = super()._examples(split, table, prompt, labels)
        return [
            {**example, "prompt": clean(example["prompt"]), "options": [clean(option) for option in example["options"]]}
            for example in examples
        ]


def clean(text: str) -> str:
    """`text` without the marks of WikiHow such as [step], a full stop in the place of [title]."""
    return _MARK.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _capitalised(context: str, first: str) -> str:
    return f"{first} {context[len(first) :].strip().capitalize()}" if context.startswith(first) else context

"""Multiple choice on the user's own questions, options and labels."""

from collections.abc import Mapping
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.choice import METRICS, ChoiceTask
from rowsft.tasks.choice_columns import Labels, Options
from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import Table
from rowsft.tasks.splits import fold
from rowsft.tasks.template import Template


class MultipleChoice(ChoiceTask):
    """`prompt` is a template with column names in braces (see Template), `data`: see Tables.

    options, label, labels: see choice_columns. delimiter: what stands between prompt and option. pmi: the domain prompt
    of `accuracy_pmi`, or None. primary_metric: one of choice.METRICS.
    """

    def __init__(
        self,
        name: str,
        max_length: int,
        data: Mapping[str, Any],
        prompt: str,
        options: Any,
        label: str,
        labels: Any = "from_0",
        delimiter: str = " ",
        pmi: str | None = None,
        primary_metric: str = "accuracy_norm",
        limits: Mapping[str, int | None] | None = None,
    ):
        super().__init__(name, max_length, limits)
        self.tables = Tables(data)
        self.prompt = Template("prompt", prompt)
        self.options = Options(options)
        self.labels = Labels(label, labels, self.options)
        self.delimiter = _delimiter(delimiter, prompt)
        self.domain_prompt = _domain_prompt(pmi)
        self.primary_metric = _metric(primary_metric, pmi)
        self.higher_is_better = METRICS[primary_metric]
        self._equal_options: dict[str, int] = {}

    def _read(self) -> dict[str, list[dict]]:
        columns = [*self.prompt.columns, *self.options.columns, *self.labels.columns]
        tables = self.tables.read(columns, self.prompt.columns)
        return {name: self._examples(name, table) for name, table in tables.items()}

    def _examples(self, split: str, table: Table) -> list[dict]:
        prompts, options = self.prompt.filled(table), self.options.of(table)
        labels = self.labels.of(table, options)
        self._equal_options[split] = sum(len(set(map(fold, row))) < len(row) for row in options)
        rows = zip(table.ids(), prompts, options, labels, strict=True)
        return [{"id": id_, "prompt": prompt, "options": own, "label": label} for id_, prompt, own, label in rows]

    def _facts(self) -> dict[str, Any]:
        facts = self.tables.facts()
        equal = {split: count for split, count in self._equal_options.items() if count}
        if not equal:
            return facts
        shown = ", ".join(f"{count:,} in {split}" for split, count in equal.items())
        warning = f"rows with two options that are equal (case and blanks aside), of which the first is chosen: {shown}"
        return {
            **facts,
            "counts": {**facts["counts"], "rows_with_equal_options": equal},
            "warnings": [*facts["warnings"], warning],
        }

    def data_at_hand(self) -> bool:
        """Whether the files of `data` are here."""
        return self.tables.at_hand()


def _delimiter(delimiter: Any, prompt: str) -> str:
    if not isinstance(delimiter, str):
        raise UserError(f"task.delimiter={shortened(delimiter)}: expected text, such as ' '")
    delimiter = delimiter.replace("\\n", "\n")
    if delimiter and not delimiter.strip() and prompt.replace("\\n", "\n")[-1:].isspace():
        raise UserError(
            f"task.prompt={shortened(repr(prompt))}: ends with white space, and task.delimiter={delimiter!r} adds "
            "more; drop one of them (task.delimiter='')"
        )
    return delimiter


def _domain_prompt(pmi: Any) -> str | None:
    if pmi is not None and not isinstance(pmi, str):
        raise UserError(f"task.pmi={shortened(pmi)}: expected text, such as 'Answer:', or null")
    return None if pmi is None else pmi.replace("\\n", "\n")


def _metric(name: Any, pmi: Any) -> str:
    if not isinstance(name, str) or name not in METRICS:
        raise UserError(f"task.primary_metric={shortened(name)}: no such metric; expected {', '.join(METRICS)}")
    if name == "accuracy_pmi" and pmi is None:
        raise UserError("task.primary_metric=accuracy_pmi: needs a domain prompt; set task.pmi, such as 'Answer:'")
    return name

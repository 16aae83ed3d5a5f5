"""Multiple choice on the user's own questions, options and labels."""

from collections.abc import Mapping
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.choice import METRICS, ChoiceTask
from rowsft.tasks.choice_columns import Labels, Options
from rowsft.tasks.instruction_form import COLUMNS, InstructionForm
from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import MissingColumn, Table
from rowsft.tasks.splits import fold
from rowsft.tasks.template import Template


class MultipleChoice(ChoiceTask):
    """`prompt` is a template with column names in braces (see Template), `data`: see Tables.

    options, label, labels: see choice_columns. delimiter: what stands between prompt and option. pmi: the domain prompt
    of `accuracy_pmi`, or None. primary_metric: one of choice.METRICS. llm_adapters: how files of one's own with the
    columns `instruction`, `output` and `answer` are taken apart (see InstructionForm); None for no such files.
    """

    #: Columns that a subclass reads beside those of its settings.
    extra_columns: tuple[str, ...] = ()

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
        llm_adapters: Mapping[str, Any] | None = None,
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.tables = Tables(data)
        self.prompt = Template("prompt", prompt)
        self.options = Options(options)
        self.labels = Labels(label, labels, self.options)
        self.delimiter = _delimiter(delimiter, prompt)
        self.domain_prompt = _domain_prompt(pmi)
        self.primary_metric = _metric(primary_metric, pmi)
        self.higher_is_better = METRICS[primary_metric]
        self.form = None if llm_adapters is None else InstructionForm(llm_adapters)
        self._equal_options: dict[str, int] = {}

    def _read(self) -> dict[str, list[dict]]:
        if self.form is not None and (self.tables.data["path"] or self.tables.data["train_path"]):
            return self._read_either(self.form)
        return self._read_columns()

    def _read_columns(self) -> dict[str, list[dict]]:
        columns = [*self.prompt.columns, *self.options.columns, *self.labels.columns, *self.extra_columns]
        tables = self.tables.read(columns, self.prompt.columns)
        return {name: self._examples(name, table, self.prompt, self.labels) for name, table in tables.items()}

    def _read_either(self, form: InstructionForm) -> dict[str, list[dict]]:
        # Files of instructions are called by the splits that they are; task.data.splits is about those of the hub.
        instructions = Tables({**self.tables.data, "splits": None})
        try:
            tables = instructions.read(COLUMNS, COLUMNS[:1])
        except UserError as refused:
            try:
                return self._read_columns()
            except MissingColumn:
                if isinstance(refused, MissingColumn):
                    raise
            # Neither form, and the columns of instructions are there: something else is wrong with them.
            raise refused
        self.tables = instructions
        parsed = {name: form.parsed(table, self.options.column or None) for name, table in tables.items()}
        prompt, labels = form.prompt or self.prompt, Labels(COLUMNS[-1], form.answers, self.options)
        return {name: self._examples(name, table, prompt, labels) for name, table in parsed.items()}

    def _examples(self, split: str, table: Table, prompt: Template, labels: Labels) -> list[dict]:
        prompts, options = prompt.filled(table), self.options.of(table)
        self._equal_options[split] = sum(len(set(map(fold, row))) < len(row) for row in options)
        rows = zip(table.ids(), prompts, options, labels.of(table, options), strict=True)
        return [{"id": id_, "prompt": text, "options": own, "label": label} for id_, text, own, label in rows]

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

"""Multiple choice on the user's own questions, options and labels."""

from collections.abc import Mapping
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks import choice_settings as settings
from rowsft.tasks.answer_words import fault
from rowsft.tasks.by_rows import examples_of
from rowsft.tasks.choice import ChoiceTask, words_of
from rowsft.tasks.choice_columns import Labels, Options
from rowsft.tasks.choice_settings import FIELDS, INSTRUCTION, METRICS
from rowsft.tasks.continuing import new_tokens
from rowsft.tasks.instruction_form import COLUMNS, InstructionForm
from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import MissingColumn, Table
from rowsft.tasks.splits import fold
from rowsft.tasks.template import Template


class MultipleChoice(ChoiceTask):
    """`prompt` is a template with column names in braces (see Template), `data`: see Tables.

    options, label, labels: see choice_columns. delimiter: what stands between prompt and option. pmi: the domain prompt
    of `accuracy_pmi`, or None. primary_metric: one of choice_settings.METRICS. llm_adapters: how files of one's own
    with the columns `instruction`, `output` and `answer` are taken apart (see InstructionForm); None for no such files.
    form: FIELDS puts their parts into `prompt`; INSTRUCTION shows the instructions as they are, and an option is an
    output. max_new_tokens: the most that the model writes, for `accuracy_generated`; None leaves that out.
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
        form: str = FIELDS,
        max_new_tokens: int | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.max_new_tokens = None if max_new_tokens is None else new_tokens(max_new_tokens, max_length)
        self.form = settings.form(form)
        self.tables = Tables(data)
        self.prompt = Template("prompt", prompt)
        self.options = Options(options)
        self.labels = Labels(label, labels, self.options)
        # A template for instructions ends with a line break.
        self.delimiter = settings.delimiter(delimiter, prompt) if form == FIELDS else ""
        self.domain_prompt = settings.domain_prompt(pmi)
        self.primary_metric = settings.metric(primary_metric, METRICS, pmi, max_new_tokens)
        self.higher_is_better = METRICS[primary_metric]
        self.instructions = None if llm_adapters is None else InstructionForm(llm_adapters)
        if form == INSTRUCTION and self.instructions is None:
            raise UserError(
                "task.form=instruction: task.llm_adapters says how the answers are called, and is null; set it, or "
                "task.form=fields"
            )
        self._equal_options: dict[str, int] = {}

    def _read(self) -> dict[str, list[dict]]:
        has_files = self.tables.data["path"] or self.tables.data["train_path"]
        if self.form == INSTRUCTION and not has_files:
            raise UserError(
                f"task.form=instruction: reads files with the columns {', '.join(COLUMNS)}; name one, or a folder of "
                "them, with task.data.path"
            )
        if self.instructions is None or not has_files:
            return self._read_columns()
        return self._read_asked(self.instructions) if self.form == INSTRUCTION else self._read_either(self.instructions)

    def _read_columns(self) -> dict[str, list[dict]]:
        columns = [*self.prompt.columns, *self.options.columns, *self.labels.columns, *self.extra_columns]
        tables = self.tables.read(columns, self.prompt.columns)
        return examples_of(
            tables, lambda name, table: self._told_apart(table, self._examples(name, table, self.prompt, self.labels))
        )

    def _told_apart(self, table: Table, examples: list[dict]) -> list[dict]:
        """The examples of the rows of `table`. Raises UserError for options that no text could tell apart."""
        if self.max_new_tokens is not None:
            for i, example in enumerate(examples):
                if said := fault(words_of(example)):
                    raise UserError(f"{table.place(i)}: {said}; drop the row, or set task.max_new_tokens=null")
        return examples

    def _of_files(self) -> Tables:
        # Files of instructions are called by the splits that they are; task.data.splits is about those of the hub.
        return Tables({**self.tables.data, "splits": None})

    def _read_asked(self, form: InstructionForm) -> dict[str, list[dict]]:
        self.tables = self._of_files()
        tables = self.tables.read(COLUMNS, COLUMNS[:1])
        return examples_of(tables, lambda _, table: self._told_apart(table, self._asked(table, form)))

    def _asked(self, table: Table, form: InstructionForm) -> list[dict]:
        prompts, options, words = form.asked(table, self.options.count)
        labels = Labels(COLUMNS[-1], form.answers, self.options).of(table, options)
        rows = zip(table.ids(), prompts, options, labels, words, strict=True)
        return [
            {"id": id_, "prompt": prompt, "options": own, "label": label, "words": called}
            for id_, prompt, own, label, called in rows
        ]

    def _read_either(self, form: InstructionForm) -> dict[str, list[dict]]:
        instructions = self._of_files()
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
        prompt, labels = form.prompt or self.prompt, Labels(COLUMNS[-1], form.answers, self.options)

        def make(name: str, table: Table) -> list[dict]:
            parsed = form.parsed(table, self.options.column or None)
            return self._told_apart(table, self._examples(name, parsed, prompt, labels))

        return examples_of(tables, make)

    def _examples(self, split: str, table: Table, prompt: Template, labels: Labels) -> list[dict]:
        prompts, options = prompt.filled(table), self.options.of(table)
        self._equal_options[split] = sum(len(set(map(fold, row))) < len(row) for row in options)
        rows = zip(table.ids(), prompts, options, labels.of(table, options), strict=True)
        return [{"id": id_, "prompt": text, "options": own, "label": label} for id_, text, own, label in rows]

    def _facts(self) -> dict[str, Any]:
        facts = self.tables.facts()
        one = [
            f"every {split} row's right option is the same, number {labels.pop() + 1}: its place alone tells it"
            for split, rows in self.splits().items()
            if len(rows) > 1 and len(labels := {row["label"] for row in rows}) == 1
        ]
        facts = {**facts, "warnings": [*facts["warnings"], *one]}
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

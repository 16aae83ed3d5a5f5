"""Questions written as instructions, the form of the LLM-Adapters papers (Hu et al., arXiv 2304.01933).

Each row has an `instruction`, which names the options, the `answer` (`solution2`) and an `output` (`the correct answer
is solution2`). A template that says how the instruction is made takes it apart again, or tells how many options it has.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.choice_columns import label_text
from rowsft.tasks.reading import Table
from rowsft.tasks.template import Template

COLUMNS = ("instruction", "output", "answer")
KEYS = ("instruction", "answers", "prompt")
_OUTPUT = "the correct answer is {}"
# Stanford's template, in which the papers' scripts put an instruction (conf/task/alpaca.yaml has it too).
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
_OPTION = re.compile(r"option([1-9])")


class InstructionForm:
    """`instruction`: a template or several, of which one makes each row's; `answers`: how its options are called.

    Fields called option1, option2 ... are the options; the others stand in the place of the columns of the same name.
    prompt: the template of those fields where it is another than the task's own, else None.
    """

    def __init__(self, settings: Any):
        if not isinstance(settings, Mapping) or set(settings) - set(KEYS) or not settings.get("instruction"):
            raise UserError(
                f"task.llm_adapters={shortened(settings)}: expected a mapping with the keys {', '.join(KEYS)}, or null"
            )
        given, answers = settings["instruction"], settings.get("answers")
        if isinstance(answers, str) or not isinstance(answers, Sequence) or len(answers) < 2:
            raise UserError(
                f"task.llm_adapters.answers={shortened(answers)}: expected a list such as [answer1, answer2]"
            )
        self.templates = [
            Template("llm_adapters.instruction", text) for text in ([given] if isinstance(given, str) else given)
        ]
        # A text that fits both alike fits in one way alone.
        self._patterns = [(_pattern(template, "+?"), _pattern(template, "+")) for template in self.templates]
        self.answers = [label_text(answer) for answer in answers]
        prompt = settings.get("prompt")
        self.prompt = None if prompt is None else Template("llm_adapters.prompt", prompt)

    def parsed(self, table: Table, options: str | None) -> Table:
        """The table with the fields of the instructions as columns, beside `answer`.

        options: the column of lists that the options make; None where they are no lists. Raises UserError, naming the
        row, for an instruction that none of the templates makes, or that can be taken apart in two ways, and for an
        output that is not about the answer.
        """
        rows = [self._fields(instruction, table.place(i)) for i, instruction in enumerate(_checked(table))]
        return replace(table, columns={**_columns(rows, options), "answer": table.columns["answer"]}, class_names={})

    def asked(self, table: Table, count: int | None) -> tuple[list[str], list[list[str]], list[list[str]]]:
        """Of every row the prompt, the outputs to choose from, and how the options are called in them.

        count: how many options a question has; None where the template that makes the instruction tells. Raises
        UserError as `parsed`, but not for parts that are empty or can be told apart in two ways: they stay together.
        """
        prompts, words = [], []
        for i, instruction in enumerate(_checked(table)):
            prompts.append(_ALPACA.format(instruction))
            counts = {count or _option_count(template) for template in self._makers(instruction)}
            if len(counts) != 1:
                raise self._refused(instruction, table.place(i), len(counts))
            words.append(self.answers[: counts.pop()])
        return prompts, [[_OUTPUT.format(word) for word in row] for row in words], words

    def _makers(self, instruction: str) -> list[Template]:
        """The templates that make the instruction."""
        pairs = zip(self.templates, self._patterns, strict=True)
        return [template for template, (pattern, _) in pairs if pattern.fullmatch(instruction)]

    def _fields(self, instruction: str, place: str) -> dict[str, str]:
        found = []
        for template, patterns in zip(self.templates, self._patterns, strict=True):
            for pattern in patterns:
                match = pattern.fullmatch(instruction)
                fields = dict(zip(template.columns, match.groups(), strict=True)) if match else None
                if fields and fields not in found:
                    found.append(fields)
        if len(found) == 1 and all(map(str.strip, found[0].values())):
            return found[0]
        raise self._refused(instruction, place, len(found))

    def _refused(self, instruction: str, place: str, readings: int) -> UserError:
        fault = ("has another form", "has an empty part", "can be read in several ways")[min(readings, 2)]
        return UserError(
            f"{place}: column instruction {fault} ({shortened(instruction, 120)}); expected "
            f"{' or '.join(shortened(repr(template.text), 160) for template in self.templates)}"
        )


def _checked(table: Table) -> Iterator[str]:
    """The instruction of every row. Raises UserError for a row whose output is not about its answer."""
    for i, (instruction, output, answer) in enumerate(zip(*(table.columns[name] for name in COLUMNS), strict=True)):
        wanted = _OUTPUT.format(answer.strip())
        if output.strip() != wanted:
            raise UserError(f"{table.place(i)}: column output is {shortened(output)}; expected {shortened(wanted)}")
        yield instruction


def _option_count(template: Template) -> int:
    return sum(map(bool, map(_OPTION.fullmatch, template.columns)))


def _pattern(template: Template, times: str) -> re.Pattern:
    """What matches a text that the template makes; `+?` takes each field as short as can be, `+` as long."""
    parts = (re.escape(before) + (f"(.{times})" if name is not None else "") for before, name in template.parts)
    return re.compile("".join(parts), re.DOTALL)


def _columns(rows: list[dict[str, str]], options: str | None) -> dict[str, list[Any]]:
    names = [name for name in rows[0] if options is None or not _OPTION.fullmatch(name)]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    if options is not None:
        columns[options] = [[text for name, text in row.items() if _OPTION.fullmatch(name)] for row in rows]
    return columns

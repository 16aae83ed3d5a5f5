"""Social IQA: three answers to a question about a social situation, chosen by their likelihood."""

import json
import re
from collections.abc import Mapping
from typing import Any

from rowsft.assets import fetch
from rowsft.tasks.base import whole_number
from rowsft.tasks.choice import ChoiceTask
from rowsft.tasks.splits import fold, split_by_hash

_ITEM = re.compile(r"(?P<context>.*[.!?\"'])\s+(?P<question>[^.!?]*\?) A: (.*); B: (.*); C: (.*)\.", re.DOTALL)


class SocialIqa(ChoiceTask):
    """The prompt is `Q: <context> <question>\\nA:` and an answer ` <option>`; training shows the right answer alone.

    `accuracy_norm`, by log-likelihood per character, is the primary metric: short options have no head start.
    """

    primary_metric = "accuracy_norm"

    def __init__(
        self,
        name: str,
        max_length: int,
        validation: int,
        test: int,
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.validation = whole_number("task.validation", validation, 1)
        self.test = whole_number("task.test", test, 1)

    def _read(self) -> dict[str, list[dict]]:
        text = (fetch.ensure("social_iqa") / "items.jsonl").read_text(encoding="utf-8")
        return split_by_hash(parse(text), lambda example: fold(example["context"]), self.validation, self.test)

    def _facts(self) -> dict[str, Any]:
        facts = fetch.about("social_iqa")
        note = "own split of these items by hash of the context, no context in two splits; repeated items dropped"
        return {**facts, "caveat": f"{facts['caveat']}; {note}"}

    def prompt_of(self, example: dict) -> str:
        """Context and question."""
        return f"Q: {example['context']} {example['question']}\nA:"


def parse(text: str) -> list[dict]:
    """Examples {"id", "context", "question", "options" (3), "label" (0 to 2)} of the lines, repeats dropped."""
    seen: set[str] = set()
    examples = []
    for number, line in enumerate(text.rstrip("\n").split("\n")):
        item = json.loads(line)
        content = item["input"][0]["content"]
        if content in seen:
            continue
        seen.add(content)
        match = _ITEM.fullmatch(content)
        assert match is not None, f"item {number} of the package has another form"
        examples.append(
            {
                "id": f"item-{number}",
                "context": match["context"],
                "question": match["question"],
                "options": list(match.groups()[2:]),
                "label": "ABC".index(item["ideal"]),
            }
        )
    return examples

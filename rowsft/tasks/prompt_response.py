"""Supervised fine-tuning of a causal language model on the user's own prompts and responses."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.alternatives import Alternatives
from rowsft.tasks.by_rows import examples_of
from rowsft.tasks.causal import CausalTask, encode_answers
from rowsft.tasks.local_data import Tables
from rowsft.tasks.long_examples import longer
from rowsft.tasks.reading import Table
from rowsft.tasks.template import Template


class PromptResponse(CausalTask):
    """`prompt` and `response` are templates with column names in braces (see Template); `data`: see Tables.

    `prompt` may be a list of templates: see Alternatives.

    The loss is on the response and the end-of-sequence token after it. Metrics: those of `held_out`; `loss` is the
    primary one, lower is better.
    """

    primary_metric = "loss"
    higher_is_better = False

    def __init__(
        self,
        name: str,
        max_length: int,
        data: Mapping[str, Any],
        prompt: str | Sequence[str],
        response: str,
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.tables = Tables(data)
        self.prompt, self.response = Alternatives("prompt", prompt), Template("response", response)

    def _read(self) -> dict[str, list[dict]]:
        tables = self.tables.read([*self.prompt.columns, *self.response.columns], self.prompt.columns)
        return examples_of(tables, lambda _, table: self._examples(table))

    def _examples(self, table: Table) -> list[dict]:
        prompts, responses = self.prompt.filled(table), self.response.filled(table)
        rows = zip(table.ids(), prompts, responses, strict=True)
        return [{"id": id_, "prompt": prompt, "response": response} for id_, prompt, response in rows]

    def _facts(self) -> dict[str, Any]:
        return self.tables.facts()

    def data_at_hand(self) -> bool:
        """Whether the files of `data` are here."""
        return self.tables.at_hand()

    def encoding_settings(self) -> dict[str, Any]:
        """The most tokens of an example; templates are in its texts."""
        return {"max_length": self.max_length}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """Prompt, response and end-of-sequence token; labels on the last two."""
        return self._encoded(examples, tokenizer, self.max_length)

    def _encoded(self, examples: list[dict], tokenizer, max_length: int) -> list[dict]:
        prompts, responses = ([example[key] for example in examples] for key in ("prompt", "response"))
        return encode_answers(tokenizer, prompts, responses, max_length, end=True)

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """Whether prompt, response and end-of-sequence token are more than max_length tokens."""

        def counts(some: list[dict]) -> list[int]:
            return [len(encoded["input_ids"]) for encoded in self._encoded(some, tokenizer, sys.maxsize)]

        return longer(examples, lambda one: (one["prompt"], one["response"]), self.max_length, counts)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The metrics of `held_out`. A prediction is the example's mean token loss; it has no label."""
        encoded = self.kept_tokens("encode", examples, tokenizer, lambda: self.encode(examples, tokenizer))
        scored = self.score_answers(model, encoded, tokenizer, batch_size, progress)
        rows = [
            {
                "id": example["id"],
                "prediction": -score.log_likelihood / score.tokens,
                "label": None,
                "scores": [score.log_likelihood],
                **held_out.fields(one, score),
            }
            for example, one, score in zip(examples, encoded, scored, strict=True)
        ]
        return Evaluation(held_out.metrics(encoded, scored), rows)

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """None: the untrained model's own loss is what the method `none` reports."""
        return {}

"""Problems whose answer is a number at the end of a rationale, such as GSM8K's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rowsft.errors import UserError, shortened
from rowsft.formulas import accuracy
from rowsft.tasks import Evaluation, Progress
from rowsft.tasks.continuing import ContinuingTask, new_tokens
from rowsft.tasks.final_number import final_number
from rowsft.tasks.prompt_response import PromptResponse
from rowsft.tasks.reading import Table


class GeneratedAnswer(ContinuingTask, PromptResponse):
    """Training is on the whole response, rationale and answer; in evaluation the model writes one to the same prompt.

    `exact_match`, the primary metric, is the share of continuations whose final number (see final_number.py) is that of
    the response. Beside it stand the metrics of `held_out`.
    """

    primary_metric = "exact_match"
    higher_is_better = True

    def __init__(
        self,
        name: str,
        max_length: int,
        data: Mapping[str, Any],
        prompt: str | Sequence[str],
        response: str,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, data, prompt, response, limits, long_examples)
        self.max_new_tokens = new_tokens(max_new_tokens, max_length)
        self.stop = _texts(stop)

    def _examples(self, table: Table) -> list[dict]:
        examples = super()._examples(table)
        for row, example in enumerate(examples):
            example["number"] = final_number(example["response"])
            if example["number"] is None:
                raise UserError(
                    f"{table.place(row)}: no final number in the response {shortened(example['response'])!r}; give it "
                    "one, after #### say, or drop the row"
                )
        return examples

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """`exact_match` and the metrics of `held_out`.

        A prediction is the final number of what the model wrote, "" where there is none, and its label that of the
        response; beside them the fields of `continued`.
        """
        held_out = super().evaluate(model, examples, tokenizer, batch_size=batch_size, progress=progress)
        prompts = [example["prompt"] for example in examples]
        written = self.continued(model, examples, prompts, tokenizer, batch_size, progress)
        rows = [
            {**row, "prediction": final_number(own["generated"]) or "", "label": example["number"], **own}
            for row, example, own in zip(held_out.predictions, examples, written, strict=True)
        ]
        predicted, labels = (np.array([row[key] for row in rows]) for key in ("prediction", "label"))
        return Evaluation({"exact_match": accuracy(predicted, labels), **held_out.metrics}, rows)


def _texts(stop: Any) -> list[str]:
    """task.stop as a list. Raises UserError for what is no list of texts, and for an empty one, which is everywhere."""
    if isinstance(stop, str | Mapping) or not isinstance(stop, Sequence):
        raise UserError(f"task.stop={shortened(stop)}: expected a list of texts, such as ['Question:']")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise UserError(
                f"task.stop={shortened(list(stop))}: {shortened(repr(text))} is no text that could end another"
            )
    # As in templates: a command line cannot hold a line break.
    return [text.replace("\\n", "\n") for text in stop]

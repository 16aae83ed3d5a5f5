"""Problems whose answer is a number at the end of a rationale, such as GSM8K's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rowsft.errors import UserError, shortened
from rowsft.formulas import accuracy
from rowsft.tasks import Evaluation, Progress, Size
from rowsft.tasks.base import whole_number
from rowsft.tasks.causal import encode_prompts
from rowsft.tasks.final_number import final_number
from rowsft.tasks.generating import continuations, dry_continuation
from rowsft.tasks.prompt_response import PromptResponse
from rowsft.tasks.reading import Table


class GeneratedAnswer(PromptResponse):
    """Training is on the whole response, rationale and answer; in evaluation the model writes one to the same prompt.

    A continuation is greedy, of at most `max_new_tokens`, and ends before any of the texts in `stop`. `exact_match`,
    the primary metric, is the share of continuations whose final number (see final_number.py) is that of the response.
    Beside it stand the metrics of `held_out`. Prompt and continuation together have at most `max_length` tokens: a
    longer prompt loses its start, as in training.
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
        self.max_new_tokens = whole_number("task.max_new_tokens", max_new_tokens, 1)
        if max_new_tokens >= max_length:
            raise UserError(
                f"task.max_new_tokens={max_new_tokens}: leaves no token of task.max_length={max_length} to the prompt; "
                "lower it or raise task.max_length"
            )
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

    def size(self, encoded: dict) -> Size:
        """Tokens of prompt and response, those of the response, those of the prompt as it is continued."""
        tokens, answer, _ = super().size(encoded)
        # An example of full length may have had its prompt cut to make room for its response.
        prompt = tokens - (answer or 0) if tokens < self.max_length else self._prompt_room
        return Size(tokens, answer, min(prompt, self._prompt_room))

    @property
    def _prompt_room(self) -> int:
        return self.max_length - self.max_new_tokens

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., Any]) -> dict[str, Any]:
        """The collator's entries; of what is evaluated also `prompt_tokens`, which evaluation takes out."""
        batch = super().dummy_batch(model, count, size, empty)
        return batch if size.prompt is None else {**batch, "prompt_tokens": size.prompt}

    def dry_evaluation(self, model, batch: dict[str, Any], times: int) -> None:
        """The pass over prompts with responses, then the first and the last of generating."""
        scored = {name: value for name, value in batch.items() if name != "prompt_tokens"}
        super().dry_evaluation(model, scored, times)
        prompt = batch.get("prompt_tokens", self._prompt_room)
        dry_continuation(model, batch["input_ids"], min(prompt, self._prompt_room), self.max_new_tokens)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """`exact_match` and the metrics of `held_out`.

        A prediction is the final number of what the model wrote, "" where there is none, and its label that of the
        response. Beside them: `generated` (the text), `generated_tokens`, `stopped` (by itself, before the limit) and
        `prompt_tokens_cut`.
        """
        held_out = super().evaluate(model, examples, tokenizer, batch_size=batch_size, progress=progress)
        prompts = self._prompts(examples, tokenizer)
        texts = [prompt["input_ids"] for prompt in prompts]
        written = continuations(model, texts, tokenizer, self.max_new_tokens, batch_size, self.stop, progress)
        rows = [
            {
                **row,
                "prediction": final_number(one.text) or "",
                "label": example["number"],
                "generated": one.text,
                "generated_tokens": len(one.token_ids),
                "stopped": one.stopped,
                "prompt_tokens_cut": prompt["cut"],
            }
            for row, example, one, prompt in zip(held_out.predictions, examples, written, prompts, strict=True)
        ]
        predicted, labels = (np.array([row[key] for row in rows]) for key in ("prediction", "label"))
        return Evaluation({"exact_match": accuracy(predicted, labels), **held_out.metrics}, rows)

    def _prompts(self, examples: list[dict], tokenizer) -> list[dict]:
        """The tokens of every prompt as the model continues it, and how many were cut off."""

        def encode() -> list[dict]:
            found = encode_prompts(tokenizer, [example["prompt"] for example in examples], self._prompt_room)
            return [{"input_ids": ids, "cut": cut} for ids, cut in found]

        return self.kept_tokens(f"prompts of up to {self._prompt_room} tokens", examples, tokenizer, encode)


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

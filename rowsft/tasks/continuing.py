"""Tasks in whose evaluation the model continues prompts: what it is shown of them, and what a plan computes of that."""

from collections.abc import Callable, Sequence
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks import Progress, Size
from rowsft.tasks.base import whole_number
from rowsft.tasks.causal import CausalTask, encode_prompts
from rowsft.tasks.generating import continuations, dry_continuation


class ContinuingTask(CausalTask):
    """Continuations are greedy, of at most `max_new_tokens`, and end before any of the texts in `stop`.

    max_new_tokens: None where the task has nothing continued. Prompt and continuation together have at most
    `max_length` tokens: a longer prompt loses its start, as in training.
    """

    max_new_tokens: int | None = None
    stop: Sequence[str] = ()

    def continued(
        self,
        model,
        examples: list[dict],
        prompts: Sequence[str],
        tokenizer,
        batch_size: int,
        progress: Progress = None,
    ) -> list[dict[str, Any]]:
        """What the model writes after every example's prompt, as fields of a prediction.

        `generated` (the text), `generated_tokens`, `stopped` (by itself, before the limit) and `prompt_tokens_cut`.
        """
        assert self.max_new_tokens is not None, "the task continues nothing"

        def encode() -> list[dict]:
            found = encode_prompts(tokenizer, prompts, self._prompt_room)
            return [{"input_ids": ids, "cut": cut} for ids, cut in found]

        encoded = self.kept_tokens(f"prompts of up to {self._prompt_room} tokens", examples, tokenizer, encode)
        ids = [one["input_ids"] for one in encoded]
        written = continuations(model, ids, tokenizer, self.max_new_tokens, batch_size, self.stop, progress)
        return [
            {
                "generated": one.text,
                "generated_tokens": len(one.token_ids),
                "stopped": one.stopped,
                "prompt_tokens_cut": prompt["cut"],
            }
            for one, prompt in zip(written, encoded, strict=True)
        ]

    @property
    def _prompt_room(self) -> int:
        return self.max_length - (self.max_new_tokens or 0)

    def size(self, encoded: dict) -> Size:
        """Tokens of prompt and answer, those of the answer, those of the prompt as it is continued."""
        size = super().size(encoded)
        if self.max_new_tokens is None:
            return size
        # An example of full length may have had its prompt cut to make room for its answer.
        prompt = size.tokens - (size.answer or 0) if size.tokens < self.max_length else self._prompt_room
        return size._replace(prompt=min(prompt, self._prompt_room))

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., Any]) -> dict[str, Any]:
        """The collator's entries; of what is evaluated also `prompt_tokens`, which evaluation takes out."""
        batch = super().dummy_batch(model, count, size, empty)
        return batch if size.prompt is None else {**batch, "prompt_tokens": size.prompt}

    def dry_evaluation(self, model, batch: dict[str, Any], times: int) -> None:
        """The pass over prompts with answers, then the first and the last of generating."""
        scored = {name: value for name, value in batch.items() if name != "prompt_tokens"}
        super().dry_evaluation(model, scored, times)
        if self.max_new_tokens is not None:
            prompt = min(batch.get("prompt_tokens", self._prompt_room), self._prompt_room)
            dry_continuation(model, batch["input_ids"], prompt, self.max_new_tokens)


def new_tokens(value: Any, max_length: int) -> int:
    """task.max_new_tokens. Raises UserError for what is no number, and for one that leaves a prompt nothing."""
    whole_number("task.max_new_tokens", value, 1)
    if value >= max_length:
        raise UserError(
            f"task.max_new_tokens={value}: leaves no token of task.max_length={max_length} to the prompt; lower it or "
            "raise task.max_length"
        )
    return value

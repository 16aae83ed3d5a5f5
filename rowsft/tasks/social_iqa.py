"""Social IQA: three answers to a question about a social situation, chosen by their likelihood."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rowsft.assets import fetch
from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.base import whole_number
from rowsft.tasks.causal import CausalTask, encode_answer
from rowsft.tasks.splits import fold, split_by_hash

_ITEM = re.compile(r"(?P<context>.*[.!?\"'])\s+(?P<question>[^.!?]*\?) A: (.*); B: (.*); C: (.*)\.", re.DOTALL)


class SocialIqa(CausalTask):
    """The prompt is `Q: <context> <question>\\nA:` and an answer ` <option>`; training shows the right answer alone.

    `accuracy_norm` (the primary metric) takes the option with the largest log-likelihood per character, so that short
    options have no head start; `accuracy_sum` takes the largest log-likelihood as it is. The metrics of `held_out` are
    those of the right answers.
    """

    primary_metric = "accuracy_norm"
    higher_is_better = True
    evaluates_as_trained = False

    def __init__(
        self, name: str, max_length: int, validation: int, test: int, limits: Mapping[str, int | None] | None = None
    ):
        super().__init__(name, max_length, limits)
        self.validation = whole_number("task.validation", validation, 1)
        self.test = whole_number("task.test", test, 1)

    def _read(self) -> dict[str, list[dict]]:
        text = (fetch.ensure("social_iqa") / "items.jsonl").read_text(encoding="utf-8")
        return split_by_hash(parse(text), lambda example: fold(example["context"]), self.validation, self.test)

    def _facts(self) -> dict[str, Any]:
        facts = fetch.about("social_iqa")
        note = "own split of these items by hash of the context, no context in two splits; repeated items dropped"
        return {**facts, "caveat": f"{facts['caveat']}; {note}"}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """The right answer after its prompt; the loss is on the answer's tokens alone."""
        return [self._encode(example, example["options"][example["label"]], tokenizer) for example in examples]

    def _encode(self, example: dict, option: str, tokenizer) -> dict[str, Any]:
        prompt = f"Q: {example['context']} {example['question']}\nA:"
        return encode_answer(tokenizer, prompt, f" {option}", self.max_length, end=False)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """accuracy_norm, accuracy_sum, those of `held_out`; `batch_size` counts options. Scores are in nats."""
        encoded = [self._encode(example, option, tokenizer) for example in examples for option in example["options"]]
        scored = self.score_answers(model, encoded, tokenizer, batch_size, progress)
        sums = np.array([score.log_likelihood for score in scored]).reshape(len(examples), -1)
        norms = sums / np.array([[len(option) for option in example["options"]] for example in examples])
        labels = np.array([example["label"] for example in examples])
        # Every example has as many options.
        right = (np.arange(len(examples)) * sums.shape[1] + labels).tolist()
        right_encoded, right_scores = [encoded[i] for i in right], [scored[i] for i in right]
        numbers = {
            "accuracy_norm": float(np.mean(norms.argmax(axis=1) == labels)),
            "accuracy_sum": float(np.mean(sums.argmax(axis=1) == labels)),
            **held_out.metrics(right_encoded, right_scores),
        }
        rows = [
            {
                "id": example["id"],
                "prediction": int(norms[i].argmax()),
                "prediction_sum": int(sums[i].argmax()),
                "label": example["label"],
                "scores": sums[i].tolist(),
                **held_out.fields(right_encoded[i], right_scores[i]),
            }
            for i, example in enumerate(examples)
        ]
        return Evaluation(numbers, rows)

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """Accuracy of guessing."""
        return {"chance_accuracy": float(np.mean([1 / len(example["options"]) for example in examples]))}


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

"""Multiple choice by log-likelihood: what every task of questions and options shares."""

from typing import Any

import numpy as np

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.causal import CausalTask, encode_answers
from rowsft.tasks.choice_scores import NORMS, Question, accuracies
from rowsft.tasks.evaluating import run_batches

#: What may be tuned and reported by, and whether more of it is better.
METRICS = {**{f"accuracy_{name}": True for name in NORMS}, "loss": False, "bits_per_byte": False}


class ChoiceTask(CausalTask):
    """Examples have an `id`, a `prompt`, `options` (texts, two or more) and the `label`, the right one's number from 0.

    An option stands after the prompt and `delimiter`. Training shows the right option alone; evaluation takes the
    likeliest (see choice_scores.py for the metrics), and beside that the metrics of `held_out` of the right options.

    domain_prompt: what an option's likelihood is compared with for `accuracy_pmi`; None leaves that metric out.
    """

    higher_is_better = True
    evaluates_as_trained = False
    shares_prompts = True
    delimiter = " "
    domain_prompt: str | None = None

    def prompt_of(self, example: dict) -> str:
        """The text before the options."""
        return example["prompt"]

    def encoding_settings(self) -> dict[str, Any]:
        """The most tokens of prompt and option, and what stands between them."""
        return {"max_length": self.max_length, "delimiter": self.delimiter}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """The right option after its prompt; the loss is on the option's tokens alone."""
        return self._encode([(example, example["options"][example["label"]]) for example in examples], tokenizer)

    def _encode(self, chosen: list[tuple[dict, str]], tokenizer) -> list[dict[str, Any]]:
        """Every option after the prompt of its example."""
        encoded = self._after([(self.prompt_of(example), option) for example, option in chosen], tokenizer)
        for (example, option), one in zip(chosen, encoded, strict=True):
            if one["labels"][-1] == IGNORED:
                # Nothing would be its score, the best there is.
                raise UserError(
                    f"task {self.name}, example {example['id']}: the tokenizer has no token for the option "
                    f"{shortened(option)}; use another model or leave the example out"
                )
        return encoded

    def _after(self, pairs: list[tuple[str, str]], tokenizer) -> list[dict[str, Any]]:
        # White space at the prompt's end is the beginning of an option's first token, as lm-evaluation-harness has it.
        stems = [prompt.rstrip() or prompt for prompt, _ in pairs]
        ends = [prompt[len(stem) :] for stem, (prompt, _) in zip(stems, pairs, strict=True)]
        answers = [f"{end}{self.delimiter}{option}" for end, (_, option) in zip(ends, pairs, strict=True)]
        return encode_answers(tokenizer, stems, answers, self.max_length, end=False)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The accuracies of choice_scores.py and the metrics of `held_out`; `batch_size` counts options.

        A prediction has the log-likelihoods of its options (`scores`, nats), their lengths, and the option chosen under
        each normalisation; `prediction` is that of the primary metric.
        """
        encoded = self._encode([(example, option) for example in examples for option in example["options"]], tokenizer)
        scored = self.score_answers(model, encoded, tokenizer, batch_size, progress)
        domain = self._domain_scores(model, examples, tokenizer, batch_size, progress)
        questions, right, start = [], [], 0
        for example in examples:
            end = start + len(example["options"])
            alone = None if domain is None else [domain[option] for option in example["options"]]
            questions.append(Question(example["options"], scored[start:end], alone))
            right.append(start + example["label"])
            start = end
        right_encoded, right_scores = [encoded[i] for i in right], [scored[i] for i in right]
        labels = [example["label"] for example in examples]
        metrics = {**accuracies(questions, labels), **held_out.metrics(right_encoded, right_scores)}
        rows = [
            self._prediction(example, question, held_out.fields(one, score))
            for example, question, one, score in zip(examples, questions, right_encoded, right_scores, strict=True)
        ]
        return Evaluation(metrics, rows)

    def _prediction(self, example: dict, question: Question, of_right_option: dict[str, Any]) -> dict[str, Any]:
        chosen = question.chosen()
        return {
            "id": example["id"],
            "prediction": chosen.get(self.primary_metric.removeprefix("accuracy_"), chosen["sum"]),
            "label": example["label"],
            **question.fields(),
            **of_right_option,
        }

    def _domain_scores(
        self, model, examples: list[dict], tokenizer, batch_size: int, progress: Progress
    ) -> dict[str, float] | None:
        """The log-likelihood of every different option after the domain prompt."""
        if self.domain_prompt is None:
            return None
        options = list(dict.fromkeys(option for example in examples for option in example["options"]))
        encoded = self._after([(self.domain_prompt, option) for option in options], tokenizer)
        # Not with a shared prompt: all options would be one batch.
        collate = self.collator(tokenizer, model)
        scored = run_batches(model, encoded, collate, batch_size, progress, self.read_batch)
        return {option: score.log_likelihood for option, score in zip(options, scored, strict=True)}

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """Accuracy of guessing."""
        return {"chance_accuracy": float(np.mean([1 / len(example["options"]) for example in examples]))}

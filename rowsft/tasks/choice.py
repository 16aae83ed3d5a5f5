"""Multiple choice, by log-likelihood and by what the model writes: what every task of questions and options shares."""

from typing import Any

import numpy as np

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.answer_words import first_named
from rowsft.tasks.causal import encode_answers
from rowsft.tasks.choice_scores import Question, accuracies
from rowsft.tasks.choice_settings import FIELDS, INSTRUCTION
from rowsft.tasks.continuing import ContinuingTask
from rowsft.tasks.evaluating import run_batches


class ChoiceTask(ContinuingTask):
    """Examples have an `id`, a `prompt`, `options` (texts, two or more) and the `label`, the right one's number from 0.

    An option stands after the prompt and `delimiter`. Training shows the right option alone; evaluation takes the
    likeliest (see choice_scores.py for the metrics), and beside that the metrics of `held_out` of the right options.
    With `max_new_tokens` the model also continues the prompt, and the first option that it names is its answer; an
    example's `words` are what is looked for, where they are not its options.

    domain_prompt: what an option's likelihood is compared with for `accuracy_pmi`; None leaves that metric out.
    form: FIELDS, or INSTRUCTION: a prompt's last line break is tokenised with it, and training ends the right option
    with the end-of-sequence token.
    """

    higher_is_better = True
    evaluates_as_trained = False
    delimiter = " "
    domain_prompt: str | None = None
    form = FIELDS

    def prompt_of(self, example: dict) -> str:
        """The text before the options."""
        return example["prompt"]

    def encoding_settings(self) -> dict[str, Any]:
        """The most tokens of prompt and option, what stands between them, and the form, which says what ends them."""
        return {"max_length": self.max_length, "delimiter": self.delimiter, "form": self.form}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """The right option after its prompt; the loss is on the option's tokens alone."""
        right = [(example, example["options"][example["label"]]) for example in examples]
        return self._encode(right, tokenizer, end=self.form == INSTRUCTION)

    def _encode(self, chosen: list[tuple[dict, str]], tokenizer, end: bool = False) -> list[dict[str, Any]]:
        """Every option after the prompt of its example."""
        encoded = self._after([(self.prompt_of(example), option) for example, option in chosen], tokenizer, end)
        for (example, option), one in zip(chosen, encoded, strict=True):
            if one["labels"][-1] == IGNORED:
                # Nothing would be its score, the best there is.
                raise UserError(
                    f"task {self.name}, example {example['id']}: the tokenizer has no token for the option "
                    f"{shortened(option)}; use another model or leave the example out"
                )
        return encoded

    def _after(self, pairs: list[tuple[str, str]], tokenizer, end: bool = False) -> list[dict[str, Any]]:
        stems = [self._stem(prompt) for prompt, _ in pairs]
        blanks = [prompt[len(stem) :] for stem, (prompt, _) in zip(stems, pairs, strict=True)]
        answers = [f"{blank}{self.delimiter}{option}" for blank, (_, option) in zip(blanks, pairs, strict=True)]
        return encode_answers(tokenizer, stems, answers, self.max_length, end)

    def _stem(self, prompt: str) -> str:
        """What is tokenised as the prompt."""
        if self.form == INSTRUCTION:
            return prompt
        # White space at the prompt's end is the beginning of an option's first token, as lm-evaluation-harness has it.
        return prompt.rstrip() or prompt

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The accuracies of choice_scores.py and the metrics of `held_out`; `batch_size` counts options.

        A prediction has the log-likelihoods of its options (`scores`, nats), their lengths, and the option chosen under
        each normalisation; `prediction` is that of the primary metric. With `max_new_tokens` also `accuracy_generated`
        and `unanswered` (the share of continuations that name no option), and of each example what `continued` gives,
        `prediction_generated` (-1 where no option is named: wrong) and `unanswered`; `batch_size` then counts prompts.
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
            {
                "id": example["id"],
                "prediction": question.chosen()["sum"],
                "label": example["label"],
                **question.fields(),
                **held_out.fields(one, score),
            }
            for example, question, one, score in zip(examples, questions, right_encoded, right_scores, strict=True)
        ]
        if self.max_new_tokens is not None:
            written = self._written(model, examples, tokenizer, batch_size, progress)
            rows = [{**row, **own} for row, own in zip(rows, written, strict=True)]
            metrics |= {
                "accuracy_generated": float(np.mean([row["prediction_generated"] == row["label"] for row in rows])),
                "unanswered": float(np.mean([row["unanswered"] for row in rows])),
            }
        primary = self.primary_metric.replace("accuracy", "prediction")
        return Evaluation(metrics, [{**row, "prediction": row.get(primary, row["prediction"])} for row in rows])

    def _written(
        self, model, examples: list[dict], tokenizer, batch_size: int, progress: Progress
    ) -> list[dict[str, Any]]:
        """What the model writes after every prompt, and which option it names there."""
        prompts = [self._stem(self.prompt_of(example)) for example in examples]
        written = self.continued(model, prompts, tokenizer, batch_size, progress)
        named = [
            first_named(own["generated"], words_of(example)) for own, example in zip(written, examples, strict=True)
        ]
        return [
            {"prediction_generated": -1 if option is None else option, "unanswered": option is None, **own}
            for own, option in zip(written, named, strict=True)
        ]

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


def words_of(example: dict) -> list[str]:
    """By what an option is named in what the model writes, in the order of the options."""
    return example.get("words") or example["options"]

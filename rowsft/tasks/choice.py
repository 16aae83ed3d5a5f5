"""Multiple choice, by log-likelihood and by what the model writes: what every task of questions and options shares."""

import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.answer_words import first_named
from rowsft.tasks.causal import answer_lengths, encode_answers
from rowsft.tasks.choice_scores import Question, accuracies
from rowsft.tasks.choice_settings import FIELDS, INSTRUCTION
from rowsft.tasks.continuing import ContinuingTask
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.long_examples import longer, may_exceed


class ChoiceTask(ContinuingTask):
    """Examples have an `id`, a `prompt`, `options` (texts, two or more) and the `label`, the right one's number from 0.

    An option stands after the prompt and `delimiter`. Training shows the right option alone; evaluation takes the
    likeliest (see choice_scores.py for the metrics), and beside that the metrics of `held_out` of the right options.
    A prompt that is too long is cut so that the longest of its options fits: all of them stand behind the same one.
    With `max_new_tokens` the model also continues the prompt, and the first option that it names is its answer; an
    example's `words` are what is looked for, where they are not its options.

    domain_prompt: what an option's likelihood is compared with for `accuracy_pmi`; None leaves that metric out.
    form: FIELDS, or INSTRUCTION: a prompt's last line break is tokenised with it, and training ends the right option
    with the end-of-sequence token.
    """

    higher_is_better = True
    evaluates_as_trained = False
    shares_prompts = True
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
        right = [[example["options"][example["label"]]] for example in examples]
        return self._encode(examples, right, tokenizer, end=self._ends)

    @property
    def _ends(self) -> bool:
        """Whether training ends the right option with the end-of-sequence token."""
        return self.form == INSTRUCTION

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """Whether the prompt has more than max_length tokens with any of its options."""

        def counts(some: list[dict]) -> list[int]:
            pairs = [(self.prompt_of(example), option) for example in some for option in example["options"]]
            whole = (len(one["input_ids"]) for one in self._after(pairs, tokenizer, sys.maxsize, end=self._ends))
            return [max(islice(whole, len(example["options"]))) for example in some]

        return longer(examples, self._texts, self.max_length, counts)

    def _texts(self, example: dict) -> tuple[str, str, str]:
        """The texts of the example that has the most tokens: the prompt, the delimiter, the longest option."""
        # Beyond ASCII no number of characters says how many tokens there are.
        longest = max(example["options"], key=lambda option: (not option.isascii(), len(option)))
        return self.prompt_of(example), self.delimiter, longest

    def _encode(
        self, examples: list[dict], options: Sequence[Sequence[str]], tokenizer, end: bool = False
    ) -> list[dict[str, Any]]:
        """Of every example, `options` of it after its prompt, one after another."""
        prompts = [self.prompt_of(example) for example in examples]
        longest = self._longest_options(examples, prompts, tokenizer)
        chosen = [(i, option) for i, own in enumerate(options) for option in own]
        pairs = [(prompts[i], option) for i, option in chosen]
        encoded = self._after(pairs, tokenizer, self.max_length, [longest[i] for i, _ in chosen], end)
        for (i, option), one in zip(chosen, encoded, strict=True):
            if one["labels"][-1] == IGNORED:
                # Nothing would be its score, the best there is.
                raise UserError(
                    f"task {self.name}, example {examples[i]['id']}: the tokenizer has no token for the option "
                    f"{shortened(option)}; use another model or leave the example out"
                )
        return encoded

    def _longest_options(self, examples: list[dict], prompts: list[str], tokenizer) -> list[int]:
        """Tokens of every example's longest option, the right one or not, as trained; 0 where no prompt is cut."""
        may_be_cut = [may_exceed(self._texts(example), self.max_length) for example in examples]
        rows = zip(examples, prompts, may_be_cut, strict=True)
        answers = [self._parts(prompt, one)[1] for row, prompt, may_be in rows if may_be for one in row["options"]]
        lengths = iter(answer_lengths(tokenizer, answers) if answers else ())
        return [
            max(islice(lengths, len(example["options"]))) + self._ends if may_be else 0
            for example, may_be in zip(examples, may_be_cut, strict=True)
        ]

    def _parts(self, prompt: str, option: str) -> tuple[str, str]:
        """What is tokenised as the prompt, and what as the option behind it."""
        stem = self._stem(prompt)
        return stem, f"{prompt[len(stem) :]}{self.delimiter}{option}"

    def _stem(self, prompt: str) -> str:
        if self.form == INSTRUCTION:
            return prompt
        # White space at the prompt's end is the beginning of an option's first token, as lm-evaluation-harness has it.
        return prompt.rstrip() or prompt

    def _after(
        self,
        pairs: list[tuple[str, str]],
        tokenizer,
        max_length: int,
        reserved: Sequence[int] | None = None,
        end: bool = False,
    ) -> list[dict[str, Any]]:
        parts = [self._parts(prompt, option) for prompt, option in pairs]
        stems, answers = [stem for stem, _ in parts], [answer for _, answer in parts]
        return encode_answers(tokenizer, stems, answers, max_length, end, reserved)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The accuracies of choice_scores.py and the metrics of `held_out`; `batch_size` counts options.

        A prediction has the log-likelihoods of its options (`scores`, nats), their lengths, and the option chosen under
        each normalisation; `prediction` is that of the primary metric. With `max_new_tokens` also `accuracy_generated`
        and `unanswered` (the share of continuations that name no option), and of each example what `continued` gives,
        `prediction_generated` (-1 where no option is named: wrong) and `unanswered`; `batch_size` then counts prompts.
        """
        encoded = self.kept_tokens(
            "options",
            examples,
            tokenizer,
            lambda: self._encode(examples, [example["options"] for example in examples], tokenizer),
        )
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
        written = self.continued(model, examples, prompts, tokenizer, batch_size, progress)
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
        pairs = [(self.domain_prompt, option) for option in options]
        what = f"options after {self.domain_prompt!r}"
        encoded = self.kept_tokens(what, examples, tokenizer, lambda: self._after(pairs, tokenizer, self.max_length))
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

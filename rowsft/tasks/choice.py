"""Multiple choice by log-likelihood: what every task of questions and options shares."""

import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, held_out
from rowsft.tasks.causal import CausalTask, answer_lengths, encode_answers
from rowsft.tasks.choice_scores import NORMS, Question, accuracies
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.long_examples import longer, may_exceed

#: What may be tuned and reported by, and whether more of it is better.
METRICS = {**{f"accuracy_{name}": True for name in NORMS}, "loss": False, "bits_per_byte": False}


class ChoiceTask(CausalTask):
    """Examples have an `id`, a `prompt`, `options` (texts, two or more) and the `label`, the right one's number from 0.

    An option stands after the prompt and `delimiter`. Training shows the right option alone; evaluation takes the
    likeliest (see choice_scores.py for the metrics), and beside that the metrics of `held_out` of the right options.
    A prompt that is too long is cut so that the longest of its options fits: all of them stand behind the same one.

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
        return self._encode(examples, [[example["options"][example["label"]]] for example in examples], tokenizer)

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """Whether the prompt has more than max_length tokens with any of its options."""

        def counts(some: list[dict]) -> list[int]:
            pairs = [(self.prompt_of(example), option) for example in some for option in example["options"]]
            whole = (len(one["input_ids"]) for one in self._after(pairs, tokenizer, sys.maxsize))
            return [max(islice(whole, len(example["options"]))) for example in some]

        return longer(examples, self._texts, self.max_length, counts)

    def _texts(self, example: dict) -> tuple[str, str, str]:
        """The texts of the example that has the most tokens: the prompt, the delimiter, the longest option."""
        # Beyond ASCII no number of characters says how many tokens there are.
        longest = max(example["options"], key=lambda option: (not option.isascii(), len(option)))
        return self.prompt_of(example), self.delimiter, longest

    def _encode(self, examples: list[dict], options: Sequence[Sequence[str]], tokenizer) -> list[dict[str, Any]]:
        """Of every example, `options` of it after its prompt, one after another."""
        prompts = [self.prompt_of(example) for example in examples]
        longest = self._longest_options(examples, prompts, tokenizer)
        chosen = [(i, option) for i, own in enumerate(options) for option in own]
        pairs = [(prompts[i], option) for i, option in chosen]
        encoded = self._after(pairs, tokenizer, self.max_length, [longest[i] for i, _ in chosen])
        for (i, option), one in zip(chosen, encoded, strict=True):
            if one["labels"][-1] == IGNORED:
                # Nothing would be its score, the best there is.
                raise UserError(
                    f"task {self.name}, example {examples[i]['id']}: the tokenizer has no token for the option "
                    f"{shortened(option)}; use another model or leave the example out"
                )
        return encoded

    def _longest_options(self, examples: list[dict], prompts: list[str], tokenizer) -> list[int]:
        """Tokens of every example's longest option, the right one or not; 0 where no prompt is cut."""
        may_be_cut = [may_exceed(self._texts(example), self.max_length) for example in examples]
        rows = zip(examples, prompts, may_be_cut, strict=True)
        answers = [self._parts(prompt, one)[1] for row, prompt, may_be in rows if may_be for one in row["options"]]
        lengths = iter(answer_lengths(tokenizer, answers) if answers else ())
        return [
            max(islice(lengths, len(example["options"]))) if may_be else 0
            for example, may_be in zip(examples, may_be_cut, strict=True)
        ]

    def _parts(self, prompt: str, option: str) -> tuple[str, str]:
        """What is tokenised as the prompt, and what as the option behind it."""
        # White space at the prompt's end is the beginning of an option's first token, as lm-evaluation-harness has it.
        stem = prompt.rstrip() or prompt
        return stem, f"{prompt[len(stem) :]}{self.delimiter}{option}"

    def _after(
        self, pairs: list[tuple[str, str]], tokenizer, max_length: int, reserved: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        parts = [self._parts(prompt, option) for prompt, option in pairs]
        stems, answers = [stem for stem, _ in parts], [answer for _, answer in parts]
        return encode_answers(tokenizer, stems, answers, max_length, end=False, reserved=reserved)

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The accuracies of choice_scores.py and the metrics of `held_out`; `batch_size` counts options.

        A prediction has the log-likelihoods of its options (`scores`, nats), their lengths, and the option chosen under
        each normalisation; `prediction` is that of the primary metric.
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

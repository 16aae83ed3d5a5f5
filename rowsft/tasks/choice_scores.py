"""Which option of a question is the likeliest, under every normalisation that the field uses.

With log p the log-likelihood of an option after the prompt (nats), the option chosen is the one with the largest

- `sum`: log p (`acc` of lm-evaluation-harness),
- `norm`: log p per character of the option (`acc_norm`),
- `bytes`: log p per byte of UTF-8 (`acc_bytes`),
- `tokens`: log p per token (what a mean token loss ranks by; it depends on the tokenizer),
- `pmi`: log p minus the option's log-likelihood after a domain prompt (Holtzman et al., arXiv 2104.08315; with an empty
  domain prompt `acc_mutual_info`).

Characters and bytes are the option's own, without the delimiter between prompt and option, as in the harness; tokens
are those scored. Of equal scores the first wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rowsft.tasks.answer_score import AnswerScore

#: The normalisations; `accuracy_<name>` is the metric, `prediction_<name>` the option chosen.
NORMS = ("sum", "norm", "bytes", "tokens", "pmi")


@dataclass(frozen=True)
class Question:
    """The scores of one question's options. `domain`: their log-likelihoods after the domain prompt, or None."""

    options: Sequence[str]
    scores: Sequence[AnswerScore]
    domain: Sequence[float] | None = None

    def lengths(self) -> dict[str, list[int]]:
        """What the log-likelihoods are divided by: one number an option."""
        return {
            "norm": [len(option) for option in self.options],
            "bytes": [len(option.encode(errors="surrogatepass")) for option in self.options],
            "tokens": [score.tokens for score in self.scores],
        }

    def sums(self) -> list[float]:
        """The log-likelihood of every option."""
        return [score.log_likelihood for score in self.scores]

    def chosen(self) -> dict[str, int]:
        """The option chosen under every normalisation; `pmi` where there is a domain prompt."""
        sums = np.array(self.sums())
        ranked = {"sum": sums, **{name: sums / np.array(lengths) for name, lengths in self.lengths().items()}}
        if self.domain is not None:
            ranked["pmi"] = sums - np.array(self.domain)
        return {name: int(scores.argmax()) for name, scores in ranked.items()}

    def fields(self) -> dict[str, Any]:
        """What every choice can be computed again from, and the choices: for the predictions of a run."""
        lengths = self.lengths()
        fields = {
            **{f"prediction_{name}": option for name, option in self.chosen().items()},
            "scores": self.sums(),
            "option_characters": lengths["norm"],
            "option_bytes": lengths["bytes"],
            "option_tokens": lengths["tokens"],
        }
        return fields if self.domain is None else {**fields, "domain_scores": list(self.domain)}


def accuracies(questions: Sequence[Question], labels: Sequence[int]) -> dict[str, float]:
    """The share of questions whose chosen option is the right one, as `accuracy_<normalisation>`; 0 to 1."""
    chosen = [question.chosen() for question in questions]
    return {
        f"accuracy_{name}": float(np.mean([one[name] == label for one, label in zip(chosen, labels, strict=True)]))
        for name in NORMS
        if all(name in one for one in chosen)
    }

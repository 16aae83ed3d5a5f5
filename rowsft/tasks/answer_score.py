"""How likely a causal language model finds the tokens of an answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rowsft.batch import IGNORED


@dataclass(frozen=True)
class AnswerScore:
    """Of one answer: its tokens' summed log-probability (nats), their number, how many were the likeliest token."""

    log_likelihood: float
    tokens: int
    greedy_matches: int


def read_scores(logits: Tensor, targets: Tensor) -> list[AnswerScore]:
    """One score a row from logits (answers, length, vocabulary) and the tokens they predict (answers, length).

    Targets of -100 do not count. Log-probabilities are taken in float32 and summed in float64.
    """
    return summed(*token_scores(logits, targets), targets)


def summed(log_probabilities: Tensor, matches: Tensor, targets: Tensor) -> list[AnswerScore]:
    """One score a row from what `token_scores` gives of all targets (answers, length)."""
    sums, counts, hits = log_probabilities.sum(1), (targets != IGNORED).sum(1), matches.sum(1)
    return [AnswerScore(*row) for row in zip(sums.tolist(), counts.tolist(), hits.tolist(), strict=True)]


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (float64) of every target, and whether it was the likeliest token; 0 where the target is -100."""
    logits = logits.float()
    labelled = targets != IGNORED
    chosen = torch.gather(logits, 2, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    log_probabilities = (chosen - logits.logsumexp(dim=-1)).double() * labelled
    return log_probabilities, (logits.argmax(dim=-1) == targets) & labelled

"""The held-out loss of responses, which every task of a causal language model reports beside its own metrics.

Loss is a mean over tokens, so runs of one tokenizer alone can be compared by it; bits per byte can be compared across
tokenizers. Both count the end-of-sequence token's loss where the task trains it; it has no bytes.
"""

import math
from collections.abc import Sequence
from typing import Any

from rowsft.tasks.answer_score import AnswerScore


def metrics(encoded: Sequence[dict], scores: Sequence[AnswerScore]) -> dict[str, float]:
    """Return what the responses of a split come to, every token counting alike.

    encoded: with `response_bytes`, as `causal.encode_answers` gives them. `loss` is in nats per token, `perplexity` its
    exponential, `bits_per_byte` in bits per byte of UTF-8 (left out where no response has any), `token_accuracy` the
    share of tokens that were the likeliest.
    """
    tokens = sum(score.tokens for score in scores)
    size = sum(example["response_bytes"] for example in encoded)
    nats = -sum(score.log_likelihood for score in scores)
    numbers = {"loss": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700.0))}
    if size:
        numbers["bits_per_byte"] = nats / math.log(2) / size
    return {**numbers, "token_accuracy": sum(score.greedy_matches for score in scores) / tokens}


def fields(encoded: dict, score: AnswerScore) -> dict[str, Any]:
    """Return the sums of one response from which the metrics of any part of the examples follow."""
    return {
        "negative_log_likelihood": -score.log_likelihood,
        "tokens": score.tokens,
        "bytes": encoded["response_bytes"],
        "greedy_matches": score.greedy_matches,
    }

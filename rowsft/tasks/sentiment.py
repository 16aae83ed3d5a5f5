"""Sentiment of movie-review sentences: positive or negative, from a package of 2.5 MB."""

from collections.abc import Mapping
from typing import Any

from rowsft.assets import fetch
from rowsft.tasks.base import whole_number
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.splits import fold, split_by_hash


class Sentiment(ClassificationTask):
    """Label 1 where the mean rating of the snippet is above 0, label 0 below; snippets rated exactly 0 are dropped.

    The data have no splits of their own: test and validation are chosen by the hash of the text, the rest is train.
    """

    num_labels = 2

    def __init__(
        self, name: str, max_length: int, validation: int, test: int, limits: Mapping[str, int | None] | None = None
    ):
        super().__init__(name, max_length, primary_metric="accuracy", extra_metrics=["f1", "matthews"], limits=limits)
        self.validation = whole_number("task.validation", validation, 1)
        self.test = whole_number("task.test", test, 1)

    def _read(self) -> dict[str, list[dict]]:
        text = (fetch.ensure("movie_reviews") / "snippets.tsv").read_text(encoding="utf-8")
        return split_by_hash(parse(text), lambda example: fold(example["text"]), self.validation, self.test)

    def _facts(self) -> dict[str, Any]:
        facts = fetch.about("movie_reviews")
        dropped = "snippets rated exactly 0 and repeated texts are dropped; own split by hash of the text"
        caveat = f"{facts['caveat']}; label = sign of the mean rating; {dropped}"
        return {**facts, "caveat": caveat, "classes": ["negative", "positive"]}


def parse(text: str) -> list[dict]:
    """Examples from lines `number <tab> mean rating <tab> snippet`, without zero ratings and repeated texts."""
    seen: set[str] = set()
    examples = []
    # Not splitlines(): it would also cut at the exotic line separators that sentences may contain.
    for line in filter(None, text.split("\n")):
        number, rating, snippet = line.split("\t")
        if float(rating) == 0 or fold(snippet) in seen:
            continue
        seen.add(fold(snippet))
        examples.append({"id": f"snippet-{number}", "text": snippet.strip(), "label": int(float(rating) > 0)})
    return examples

"""A task of one's own on texts: how many different words has a text? A number to be predicted, from a csv file."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.splits import fold, split_by_hash


class WordCount(ClassificationTask):
    """Labels are numbers: one output, squared error. `path`: a csv file with the column `text`."""

    num_labels = 1

    def __init__(self, name: str, max_length: int, path: str, limits: Mapping[str, int | None] | None = None):
        super().__init__(name, max_length, primary_metric="pearson", extra_metrics=["spearman"], limits=limits)
        self.path = Path(path)

    def data_at_hand(self) -> bool:
        """Whether the file is here: a plan then takes the texts' own lengths."""
        return self.path.is_file()

    def _read(self) -> dict[str, list[dict]]:
        if not self.path.is_file():
            raise UserError(f"task.path={self.path}: no such file; expected a csv file with a column text")
        with self.path.open(newline="", encoding="utf-8") as lines:
            texts = [row["text"] for row in csv.DictReader(lines)]
        examples = [
            {"id": f"row-{number}", "text": text, "label": float(len(set(text.split())))}
            for number, text in enumerate(texts)
        ]
        # Equal texts land in one split, whatever the order of the file.
        return split_by_hash(examples, lambda example: fold(example["text"]), validation=8, test=8)

    def _facts(self) -> dict[str, Any]:
        return {"source": str(self.path), "licence": "made up", "caveat": "", "sha256": {}}

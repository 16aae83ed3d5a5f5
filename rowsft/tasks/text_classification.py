"""Classification or regression on the user's own texts or pairs of texts."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.local_data import ROW_ID, Tables


class TextClassification(ClassificationTask):
    """`columns` names the text, an optional second text (pair), and the label; `data` is explained in Tables.

    Classes are the distinct labels of the training data, in order; `labels` fixes them and their order instead. With
    `regression` the label is a number and is used as it stands.
    """

    def __init__(
        self,
        name: str,
        max_length: int,
        data: Mapping[str, Any],
        columns: Mapping[str, str | None],
        primary_metric: str,
        extra_metrics: Sequence[str] = (),
        labels: Sequence[Any] | None = None,
        regression: bool = False,
        limits: Mapping[str, int | None] | None = None,
    ):
        for_numbers = {"pearson", "spearman"}
        for metric in (primary_metric, *extra_metrics):
            if (metric in for_numbers) != regression:
                expected = "pearson or spearman" if regression else "metrics of classes, such as accuracy"
                raise UserError(
                    f"task.primary_metric and task.extra_metrics name {metric}: with task.regression={regression} "
                    f"expected {expected}"
                )
        super().__init__(name, max_length, primary_metric, extra_metrics, limits)
        self.tables = Tables(data)
        self.columns = dict(columns)
        self.regression = regression
        self.given_labels = list(labels) if labels else None

    @property
    def num_labels(self) -> int:
        """1 for regression, else the number of classes (reads the data)."""
        return 1 if self.regression else len(self.classes)

    @property
    def is_regression(self) -> bool:
        return self.regression

    @cached_property
    def _tables(self) -> dict[str, list[dict]]:
        texts = [self.columns["text"], *([self.columns["pair"]] if self.columns.get("pair") else [])]
        return self.tables.read([*texts, self.columns["label"]], texts)

    @cached_property
    def classes(self) -> list[str]:
        """The label of every class index, as text. Raises UserError where there are fewer than two."""
        if self.given_labels:
            found = [_label_text(label) for label in self.given_labels]
        else:
            values = {row[self.columns["label"]] for row in self._tables["train"]}
            numeric = all(isinstance(value, int | float) for value in values)
            found = [_label_text(value) for value in sorted(values, key=None if numeric else str)]
        if len(set(found)) != len(found):
            raise UserError(f"task.labels={found}: a class is named twice; name each once")
        if len(found) < 2:
            raise UserError(
                f"task.columns.label={self.columns['label']}: {len(found)} class in the training data "
                f"({', '.join(found)}); expected two or more, or task.regression=true"
            )
        return found

    def _read(self) -> dict[str, list[dict]]:
        return {name: [self._example(row) for row in rows] for name, rows in self._tables.items()}

    def _example(self, row: dict) -> dict:
        example = {"id": row[ROW_ID], "text": str(row[self.columns["text"]])}
        if self.columns.get("pair"):
            example["pair"] = str(row[self.columns["pair"]])
        return {**example, "label": self._label(row)}

    def _label(self, row: dict) -> int | float:
        value = row[self.columns["label"]]
        if not self.regression:
            text = _label_text(value)
            if text not in self.classes:
                raise UserError(
                    f"task.data: label {text} of {row[ROW_ID]} is not among the classes {', '.join(self.classes)}; "
                    f"give training data for it or list all classes in task.labels"
                )
            return self.classes.index(text)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"task.data: label {value!r} of {row[ROW_ID]} is not a number; set task.regression=false"
            ) from error

    def _facts(self) -> dict[str, Any]:
        facts = self.tables.facts()
        return facts if self.regression else {**facts, "classes": self.classes}


def _label_text(value: Any) -> str:
    # A reader that met a gap elsewhere in the column turns 1 into 1.0.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

"""Classification or regression on the user's own texts or pairs of texts."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from rowsft.errors import UserError, shortened
from rowsft.tasks.by_rows import examples_of
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import Table, number

_FOR_NUMBERS = ("pearson", "spearman")


class Columns(NamedTuple):
    """Names of the columns that hold a text, its label, and the second text of a pair."""

    text: str
    pair: str | None
    label: str


class TextClassification(ClassificationTask):
    """`columns` names the text, an optional second text (pair), and the label; `data` is explained in Tables.

    A label is text as it is written, blanks around it aside. Classes are the distinct labels of the training data, in
    order (of value where all are numbers); `labels` fixes them and their order instead. With `regression` the label is
    a number and is used as it stands.
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
        long_examples: str = "truncate",
    ):
        if not isinstance(regression, bool):
            raise UserError(f"task.regression={shortened(regression)}: expected true or false")
        super().__init__(name, max_length, primary_metric, extra_metrics, limits, long_examples)
        for metric in self.metric_names:
            if (metric in _FOR_NUMBERS) != regression:
                expected = "pearson or spearman" if regression else "metrics of classes, such as accuracy"
                raise UserError(
                    f"task.primary_metric and task.extra_metrics name {metric}: with task.regression={regression} "
                    f"expected {expected}"
                )
        self.tables = Tables(data)
        self.columns = _columns(columns)
        self.regression = regression
        self.given_labels = _given(labels)

    def data_at_hand(self) -> bool:
        """Whether the files of `data` are here."""
        return self.tables.at_hand()

    @property
    def num_labels(self) -> int:
        """1 for regression, else the number of classes (reads the data)."""
        return 1 if self.regression else len(self.classes)

    @property
    def is_regression(self) -> bool:
        return self.regression

    @cached_property
    def _tables(self) -> dict[str, Table]:
        texts = [name for name in (self.columns.text, self.columns.pair) if name]
        return self.tables.read([*texts, self.columns.label], texts)

    def _labels(self, table: Table) -> list[str]:
        """The label cells without the blanks around them."""
        stripped = [label.strip() for label in table.columns[self.columns.label]]
        return self._in_words(stripped, table.class_names.get(self.columns.label, ()))

    def _in_words(self, labels: list[str], names: Sequence[str]) -> list[str]:
        """Class numbers as the names that the data set gives them, where task.labels lists those names instead."""
        given = set(self.given_labels or ())
        if not names or not given.issuperset(names) or given.issuperset(labels):
            return labels
        words = {str(number): name for number, name in enumerate(names)}
        return [words.get(label, label) for label in labels]

    @cached_property
    def classes(self) -> list[str]:
        """The label of every class index, as text. Raises UserError where there are fewer than two."""
        if self.given_labels:
            return self.given_labels
        classes = _ordered(set(self._labels(self._tables["train"])))
        if len(classes) < 2:
            raise UserError(
                f"task.columns.label={shortened(self.columns.label)}: {len(classes)} class in the training data "
                f"({', '.join(map(shortened, classes))}); expected two or more, or task.regression=true"
            )
        return classes

    def _read(self) -> dict[str, list[dict]]:
        return examples_of(self._tables, lambda _, table: self._examples(table))

    def _examples(self, table: Table) -> list[dict]:
        targets = self._numbers(table) if self.regression else self._indices(table)
        texts = table.columns[self.columns.text]
        rows = zip(table.ids(), texts, targets, strict=True)
        if not self.columns.pair:
            return [{"id": id_, "text": text, "label": label} for id_, text, label in rows]
        pairs = table.columns[self.columns.pair]
        return [
            {"id": id_, "text": text, "pair": pair, "label": label}
            for (id_, text, label), pair in zip(rows, pairs, strict=True)
        ]

    def _indices(self, table: Table) -> list[int]:
        index = {label: i for i, label in enumerate(self.classes)}
        labels = self._labels(table)
        for i, label in enumerate(labels):
            if label not in index:
                raise UserError(
                    f"{table.place(i)}: label {shortened(label)} is not among the classes "
                    f"{shortened(', '.join(self.classes), 200)}; give training data for it or list all classes in "
                    "task.labels, in quote marks where they look like numbers"
                )
        return [index[label] for label in labels]

    def _numbers(self, table: Table) -> list[float]:
        numbers = []
        for i, label in enumerate(self._labels(table)):
            try:
                numbers.append(number(label))
            except ValueError as error:
                raise UserError(
                    f"{table.place(i)}: label {shortened(label)!r} in column {shortened(self.columns.label)} is "
                    f"{error}; correct it or drop the row (for classes set task.regression=false)"
                ) from error
        return numbers

    def _facts(self) -> dict[str, Any]:
        facts = self.tables.facts()
        cells = [cell for table in self._tables.values() for cell in table.columns[self.columns.label]]
        stripped = sum(cell != cell.strip() for cell in cells)
        counts = {**facts["counts"], "labels_stripped": stripped}
        warnings = list(facts["warnings"])
        if stripped:
            warnings.append(f"blanks around {stripped:,} labels in column {shortened(self.columns.label)} are left out")
        if self.regression:
            warnings += [
                f"every {split} row has the label {labels.pop()}: a correlation with it has no value"
                for split, rows in self.splits().items()
                if len(rows) > 1 and len(labels := {row["label"] for row in rows}) == 1
            ]
            return {**facts, "counts": counts, "warnings": warnings}
        warnings += [
            f"every {split} row is of the class {shortened(self.classes[labels.pop()])}: nothing tells classes apart"
            for split, rows in self.splits().items()
            if len(rows) > 1 and len(labels := {row["label"] for row in rows}) == 1
        ]
        warnings += _look_alike(self.classes)
        return {**facts, "counts": counts, "warnings": warnings, "classes": self.classes}


def _look_alike(classes: list[str]) -> list[str]:
    """Warnings of classes that may be meant as one."""
    kinds = {
        "that differ in case alone": str.casefold,
        "that are the same number written differently": _value,
        "that look alike": _seen,
    }
    warnings = []
    for likeness, key in kinds.items():
        times = Counter(map(key, classes))
        same = [label for label in classes if times[key(label)] > 1]
        if same:
            # What cannot be seen is written as its number.
            shown = map(ascii, same) if key is _seen else same
            warnings.append(f"labels {likeness} are classes of their own: {shortened(', '.join(shown), 200)}")
    return warnings


def _seen(label: str) -> str:
    """The label as a reader sees it: no zero-width characters, one way of writing an accent, any blank a blank."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
    return " ".join(plain.split())


def _value(label: str) -> float | str:
    try:
        return number(label)
    except ValueError:
        return label


def _columns(columns: Any) -> Columns:
    if not isinstance(columns, Mapping):
        raise UserError(
            f"task.columns={shortened(columns)}: expected a mapping with the keys {', '.join(Columns._fields)}"
        )
    for key in columns:
        if key not in Columns._fields:
            raise UserError(f"task.columns.{shortened(key)}: no such key; expected {', '.join(Columns._fields)}")
    given = {key: _column(key, columns.get(key)) for key in Columns._fields}
    for key in ("text", "label"):
        if given[key] is None:
            raise UserError(f"task.columns.{key}=null: expected the name of a column")
    names = [name for name in given.values() if name is not None]
    if len(set(names)) < len(names):
        raise UserError(f"task.columns={shortened(given)}: a column is named twice; text, pair and label differ")
    return Columns(str(given["text"]), given["pair"], str(given["label"]))


def _column(key: str, value: Any) -> str | None:
    """A column's name as text: a header cell such as 0 reaches here as a number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UserError(f"task.columns.{key}={shortened(value)}: expected the name of a column, quoted if need be")
    return str(value)


def _given(labels: Any) -> list[str] | None:
    """task.labels as text: 1 is "1", true is "true"."""
    if labels is None:
        return None
    if isinstance(labels, str | Mapping) or not isinstance(labels, Sequence):
        raise UserError(f"task.labels={shortened(labels)}: expected a list of classes, or null")
    classes = []
    for label in labels:
        if not isinstance(label, str | int | float):
            raise UserError(f"task.labels={shortened(list(labels))}: {shortened(label)} is no label; expected texts")
        classes.append((str(label).lower() if isinstance(label, bool) else str(label)).strip())
    if len(set(classes)) != len(classes):
        raise UserError(f"task.labels={shortened(classes)}: a class is named twice; name each once")
    if len(classes) < 2 or not all(classes):
        raise UserError(f"task.labels={shortened(classes)}: expected two classes or more, none of them empty")
    return classes


def _ordered(labels: set[str]) -> list[str]:
    """In order of value where all are numbers, and of characters otherwise (and among equal values)."""
    if all(isinstance(_value(label), float) for label in labels):
        return sorted(labels, key=lambda label: (_value(label), label))
    return sorted(labels)

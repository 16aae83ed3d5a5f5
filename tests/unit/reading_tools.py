"""Files of the same rows in every format, and the tasks that read them."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from pyarrow import parquet

from rowsft.tasks.multiple_choice import MultipleChoice
from rowsft.tasks.prompt_response import PromptResponse
from rowsft.tasks.text_classification import TextClassification

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "CSV", "Json.GZ", "saved")


def pairs(count=30):
    """Rows of text and label: different texts, the labels good and bad in turn."""
    return [{"text": f"text number {i}", "label": ("good", "bad")[i % 2]} for i in range(count)]


def content(rows, kind) -> bytes:
    """The rows as the bytes of a csv, tsv, json or jsonl file; None is an empty cell, or null."""
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    table = [list(rows[0]), *(["" if cell is None else cell for cell in row.values()] for row in rows)]
    if kind == "tsv":
        return "".join("\t".join(cells) + "\n" for cells in table).encode()
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue().encode()


def write(folder: Path, rows, kind, name="data") -> str:
    """A file (or saved folder) of the rows with the ending `kind`; its path."""
    path = folder / f"{name}.{kind}"
    plain = kind.lower().removesuffix(".gz")
    if plain == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif plain == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = content(rows, plain)
        path.write_bytes(gzip.compress(data) if kind.lower().endswith(".gz") else data)
    return str(path)


def written(folder: Path, text: str, name="data.csv") -> Path:
    """A file of that text, with the line ends that it has."""
    path = folder / name
    path.write_text(text, newline="")
    return path


def classification(data, columns=None, **changes):
    """The task text_classification on `data` (task.data, or a path)."""
    data = {"path": str(data)} if isinstance(data, str | Path) else data
    settings = {"name": "own", "max_length": 16, "primary_metric": "accuracy", **changes}
    columns = {"text": "text", "pair": None, "label": "label", **(columns or {})}
    return TextClassification(data={"validation": 0.2, "test": 0.2, **data}, columns=columns, **settings)


def responses(data, prompt="{prompt}", response="{response}", **changes):
    """The task prompt_response on `data`."""
    data = {"path": str(data)} if isinstance(data, str | Path) else data
    data = {"validation": 0.2, "test": 0.2, **data}
    return PromptResponse(name="own", max_length=32, data=data, prompt=prompt, response=response, **changes)


def questions(data, prompt="{question}", options="options", label="label", **changes):
    """The task multiple_choice on `data`."""
    data = {"path": str(data)} if isinstance(data, str | Path) else data
    data = {"validation": 0.2, "test": 0.2, **data}
    settings = {"name": "own", "max_length": 48, **changes}
    return MultipleChoice(data=data, prompt=prompt, options=options, label=label, **settings)


def by_id(task, *keys):
    """{id: the values of `keys`} over every split, in order of the id's number."""
    rows = [row for part in task.splits().values() for row in part]
    return {row["id"]: tuple(row[key] for key in keys) for row in sorted(rows, key=lambda row: int(row["id"][4:]))}


def labels(task) -> list[str]:
    """Every row's label as text, in the file's order."""
    return [task.classes[label] for (label,) in by_id(task, "label").values()]

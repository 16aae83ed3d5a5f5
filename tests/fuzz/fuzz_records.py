"""Generators of damaged stores and data files: records with odd entries, tables with odd cells and bytes."""

import csv
import io
import json
import random
import shutil

from fuzz_checks import Case
from fuzz_commands import Place
from fuzz_files import ODD, damage
from fuzz_values import value

# Each ending with what writes rows in it.
ENDINGS = ("csv", "tsv", "jsonl", "json")
CELLS = (
    "",
    " ",
    "NA",
    "nan",
    "007",
    "1.10",
    "1e5",
    "true",
    "2024-03-12",
    '"',
    '""',
    "'",
    "a,b",
    "a\tb",
    "a\nb",
    "a\r\nb",
)


def damaged_records(draw: random.Random, place: Place) -> Case:
    """A command that reads a store of which one record or file is damaged or says something odd."""
    store = place.scratch / "store"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(place.store, store)
    run = store / draw.choice(place.runs)
    about = damage(draw, run / draw.choice(("record.json", "record.json", "record.json", "config.yaml")))
    if draw.random() < 0.3:
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != "lock")
        about += "; " + damage(draw, draw.choice(files))
    options = ["--store", str(store)]
    commands = (
        ["runs", *options],
        ["runs", "--json", *options],
        ["runs", "--experiment", "fuzzed", *options],
        ["tune", "fuzzed", *options],
        ["compare", *place.runs, *options],
        ["report", "memory", run.name, "--out", str(place.scratch / "memory.png"), *options],
        ["export", run.name, "--to", "lora", "--out", str(place.scratch / "exported"), *options],
        ["report", "--out", str(place.scratch / "reported"), *options],
    )
    return Case(draw.choice(commands), frozenset({0, 2}), about, keeps=(store,), warnings=True)


def data_files(draw: random.Random, place: Place) -> Case:
    """A run without training on a data file with odd cells, missing fields or damaged bytes."""
    family = draw.choice(("bert", "llama"))
    source = place.workshop.folder / "data" / ("texts.jsonl" if family == "bert" else "pairs.jsonl")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    about = _odd_rows(draw, rows)
    ending = draw.choice(ENDINGS)
    file = place.scratch / f"data.{ending}"
    file.write_text(_written(rows, ending), encoding="utf-8", newline="")
    if draw.random() < 0.5:
        about += "; " + damage(draw, file)
    usual = [text for text in place.workshop.overrides(family) if not text.startswith("task.data.path")]
    arguments = ["run", *usual, "method=none", "trainer.memory_probe_steps=0", f"task.data.path={file}"]
    # Classes without examples in a split are a property of the data, which damage may well have.
    return Case(arguments, frozenset({0, 2}), about, keeps=(place.store,))


def _odd_rows(draw: random.Random, rows: list[dict]) -> str:
    done = []
    for _ in range(draw.randint(0, 3)):
        row = draw.randrange(len(rows))
        key = draw.choice(sorted(rows[row]) or ["x"])
        if draw.random() < 0.15:
            rows[row].pop(key, None)
            done.append(f"row {row} without {key}")
            continue
        rows[row][key] = draw.choice((draw.choice(CELLS), draw.choice(ODD), value(draw).replace("\udcff", "?")))
        done.append(f"row {row}: {key}={str(rows[row][key])[:60]!r}")
    return ", ".join(done) or "rows as they were"


def _written(rows: list[dict], ending: str) -> str:
    if ending == "json":
        return json.dumps(rows)
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    columns = sorted({key for row in rows for key in row})
    stream = io.StringIO()
    delimiter = "," if ending == "csv" else "\t"
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    for cells in (columns, *([row.get(key, "") for key in columns] for row in rows)):
        writer.writerow(cells)
    return stream.getvalue()

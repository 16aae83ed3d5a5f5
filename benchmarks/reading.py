"""What reading the user's data costs: CPU seconds and resident bytes from a file to checked splits.

    python benchmarks/reading.py                       100,000 and 1,000,000 rows of every format
    python benchmarks/reading.py --rows 100000 --format csv

Each measurement is a process of its own, which writes the file, imports the task and then reads: the seconds are those
of reading, cutting into splits and counting repetitions; the bytes are the process's largest resident set, torch's and
the tasks' imports among them, and what it was before. Prints; stores nothing.
"""

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FORMATS = ("csv", "jsonl", "json", "parquet")
CHUNK = 50_000


def main() -> None:
    """Print one line a format and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--task", choices=("text_classification", "prompt_response"), default="text_classification")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(measured(parsed.one, parsed.task)))
        return
    print(f"{'format':<9}{'rows':>10}{'MB':>8}{'CPU s':>8}{'peak MiB':>10}{'before MiB':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in parsed.format:
            for count in parsed.rows:
                path = Path(folder) / f"rows.{kind}"
                write(path, count)
                command = [sys.executable, __file__, "--one", str(path), "--task", parsed.task]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                numbers = json.loads(out.splitlines()[-1])
                print(
                    f"{kind:<9}{count:>10,}{path.stat().st_size / 1e6:>8.0f}{numbers['cpu_seconds']:>8.1f}"
                    f"{numbers['peak_bytes'] / 2**20:>10.0f}{numbers['before_bytes'] / 2**20:>12.0f}",
                    flush=True,
                )
                path.unlink()


def rows(count: int):
    """`count` rows of 60 to 180 characters, every thousandth text a repetition, three labels."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    for i in range(count):
        text = "said, twice" if i % 1000 == 999 else f"{' '.join(draw.choices(words, k=draw.randint(12, 36)))}, {i}"
        yield {"text": text, "label": ("good", "bad", "so so")[i % 3]}


def write(path: Path, count: int) -> None:
    """The rows as a file in the format of its ending."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([("text", pa.string()), ("label", pa.string())])
        with parquet.ParquetWriter(path, schema) as writer:
            chunk: list[dict] = []
            for row in rows(count):
                chunk.append(row)
                if len(chunk) == CHUNK:
                    writer.write_table(pa.Table.from_pylist(chunk, schema))
                    chunk = []
            writer.write_table(pa.Table.from_pylist(chunk, schema))
        return
    with path.open("w", newline="") as out:
        if path.suffix == ".csv":
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows(count))
        elif path.suffix == ".json":
            out.write("[")
            out.writelines(f"{', ' if i else ''}{json.dumps(row)}" for i, row in enumerate(rows(count)))
            out.write("]")
        else:
            out.writelines(f"{json.dumps(row)}\n" for row in rows(count))


def measured(path: Path, task: str) -> dict[str, float]:
    """CPU seconds of this process and its children while the splits are read, and resident bytes."""
    from rowsft.tasks.prompt_response import PromptResponse
    from rowsft.tasks.text_classification import TextClassification

    data = {"path": str(path), "validation": 0.1, "test": 0.2}
    if task == "prompt_response":
        built = PromptResponse("own", 64, data, prompt="{text}", response="{label}")
    else:
        columns = {"text": "text", "pair": None, "label": "label"}
        built = TextClassification("own", 64, data, columns, "accuracy")
    before, start = peak(), os.times()
    built.splits()
    built.about()
    end = os.times()
    spent = sum(end[:4]) - sum(start[:4])
    return {"cpu_seconds": spent, "peak_bytes": peak(), "before_bytes": before}


def peak() -> int:
    """The largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

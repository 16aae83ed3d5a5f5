"""The user's data on the command line: one line for what is wrong with them, warnings for what is repeated."""

import json

import pytest

from rowsft.report.predictions import difference, scored
from rowsft.store import Store

BODY = "".join(f"w{i} w{i + 1},{('good', 'bad')[i % 2]}\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (f"text,label\nw1, w2,good\n{BODY}", [], "mine.csv, line 2: expected 2 as in the header"),
        (f"text,label\n{BODY}", ["task.limits.train=x"], "task.limits.train=x: expected a whole number"),
        (f"text,label\n{BODY}", ["task.data.test=x"], "task.data.test=x: expected a share"),
        (None, [], "mine.csv: no such file"),
    ],
)
def test_bad_data_and_bad_values_end_in_one_line_and_leave_no_trace(workshop, tmp_path, text, overrides, said):
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_text(text)
    data = [f"task.data.path={path}", f"store={tmp_path / 'store'}", *overrides]
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=head", *data)
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.startswith("rowsft: error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_repeated_texts_are_said_and_recorded(workshop, tmp_path):
    rows = [json.loads(line) for line in (workshop.folder / "data" / "texts.jsonl").read_text().splitlines()]
    (tmp_path / "test.csv").write_text(
        "text,label\n" + "".join(f"{row['text'].upper()} ,{row['label']} \n" for row in rows)
    )
    train = ["task.data.path=null", f"task.data.train_path={workshop.folder / 'data' / 'texts.jsonl'}"]
    data = [*train, f"task.data.test_path={tmp_path / 'test.csv'}", f"store={tmp_path / 'store'}", "trainer.steps=1"]
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=head", *data)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "store").runs()
    counts = record.result.task_about.counts
    across = counts["rows_repeated_across_splits"]
    assert across["test in train"] + across["test in validation"] == 60 and counts["labels_stripped"] == 60
    warned = [line for line in done.stderr.splitlines() if line.startswith("rowsft: warning: ")]
    assert [line.removeprefix("rowsft: warning: ") for line in warned] == record.result.task_about.warnings
    assert any("test rows have a text that train holds too" in line for line in warned)


def test_a_warning_is_printed_without_the_control_characters_of_the_data(workshop, tmp_path):
    # ESC [ 2 J clears a terminal.
    labels = ["good\x1b[2J", "Good\x1b[2J"]
    lines = (json.dumps({"text": f"w{i} w{i + 1}", "label": labels[i % 2]}) + "\n" for i in range(40))
    (tmp_path / "own.jsonl").write_text("".join(lines))
    data = [f"task.data.path={tmp_path / 'own.jsonl'}", f"store={tmp_path / 'store'}", "trainer.steps=1"]
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=head", *data)
    assert done.returncode == 0, done.stderr
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("rowsft: warning: labels that differ"))
    assert "\x1b" not in warning and warning.endswith("Good\\x1b[2J, good\\x1b[2J")


def test_the_loss_of_responses_is_computed_again_from_the_predictions(workshop, tmp_path):
    for method in ("none", "lora"):
        overrides = [*workshop.overrides("llama"), f"method={method}", f"store={tmp_path / 'store'}"]
        done = workshop.rowsft("run", *overrides, "trainer.memory_probe_steps=0")
        assert done.returncode == 0, done.stderr
    runs = Store(tmp_path / "store").runs()
    for record in runs:
        rows = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
        test = [row for row in rows if row["split"] == "test"]
        tokens = sum(row["tokens"] for row in test)
        metrics = record.result.metrics["test"]
        loss = sum(row["negative_log_likelihood"] for row in test) / tokens
        assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
        for name in ("loss", "perplexity", "token_accuracy"):
            found = scored(record, "test", name)
            assert found.metric(list(range(len(test)))) == pytest.approx(metrics[name], rel=1e-9)
    first, second = ({2023: scored(record, "test")} for record in runs)
    gap = difference(first, second)
    expected = runs[0].result.metrics["test"]["loss"] - runs[1].result.metrics["test"]["loss"]
    assert gap.value == pytest.approx(expected) and gap.low <= gap.value <= gap.high


def test_dropped_examples_are_neither_trained_on_nor_evaluated_and_the_record_counts_them(workshop, tmp_path):
    data = [f"task.data.path={workshop.folder / 'data' / 'texts.jsonl'}", f"store={tmp_path / 'store'}"]
    given = [*workshop.overrides("bert"), "method=head", *data, "task.max_length=7", "task.long_examples=drop"]
    done = workshop.rowsft("run", *given)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "store").runs()
    rows = [json.loads(line) for line in (workshop.folder / "data" / "texts.jsonl").read_text().splitlines()]
    long = [len(row["text"].split()) > 7 for row in rows]
    counts = record.result.task_about.counts["long_examples_dropped"]
    lines = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
    ids = {line["id"] for line in lines if line["split"] == "test"}
    assert ids and not ids & {f"row-{i}" for i, is_long in enumerate(long) if is_long}
    assert set(counts) == {"train", *record.config["trainer"]["evaluate"]} and 0 < counts["train"] < sum(long)
    assert record.result.task_about.sizes["test"] == len(ids)
    refused = workshop.rowsft("run", *given[:-1], "task.long_examples=refuse")
    assert refused.returncode == 2 and "train examples have more than task.max_length=7 tokens" in refused.stderr

"""A record that is wrong inside is skipped with one warning that names it; no command crashes, the good ones stay."""

import json
import logging
import os
import random
import re

import pytest
from record_mutants import ABSENT, EXPERIMENT, VALUES, mutant, places, put, whole

from rowsft import report
from rowsft.cli.main import main
from rowsft.errors import UserError
from rowsft.record import read
from rowsft.report import flat, tuning
from rowsft.report.markdown import markdown
from rowsft.report.page import page
from rowsft.store import Store
from rowsft.store.record import UnreadableRecord, read_record

#: Wrong in what a reader relies on: (path, value).
WRONG = [
    (("attempts", 0, "metrics", "test", "accuracy"), "0.5"),
    (("attempts", 0, "metrics", "test", "accuracy"), 10**400),
    (("attempts", 0, "metrics", "test", "accuracy"), 1e200),
    (("attempts", 0, "metrics", "test", "accuracy"), True),
    (("attempts", 0, "metrics", "test", "accuracy"), [0.5]),
    (("attempts", 0, "metrics", "test", "accuracy"), {"mean": 0.5}),
    (("attempts", 0, "metrics", "test"), [0.5]),
    (("attempts", 0, "metrics"), 0.5),
    (("attempts", 0, "started_at"), 5),
    (("attempts", 0, "error"), "boom"),
    (("attempts", 0, "error"), {"type": 3, "message": "x", "phase": None}),
    (("attempts", 0, "error"), {"type": "X", "message": ["x"], "phase": None}),
    (("attempts", 0, "files"), "x"),
    (("attempts", 0, "files", "predictions"), "x"),
    (("attempts", 0, "files", "predictions", "path"), 5),
    (("attempts", 0, "files", "predictions", "path"), ""),
    (("attempts", 0, "seconds"), [1]),
    (("attempts", 0, "seconds", "total"), "1 s"),
    (("attempts", 0, "step_seconds"), 3),
    (("attempts", 0, "step_seconds", "median"), "fast"),
    (("attempts", 0, "data_seconds", "total"), {}),
    (("attempts", 0, "energy"), 5),
    (("attempts", 0, "energy", "train_joules"), "3"),
    (("attempts", 0, "tokens_per_second"), "many"),
    (("attempts", 0, "steps"), []),
    (("attempts", 0, "memory"), 5),
    (("attempts", 0, "memory", "kind"), 5),
    (("attempts", 0, "memory", "train"), "x"),
    (("attempts", 0, "memory", "train", "peak_allocated_bytes"), "8 MiB"),
    (("attempts", 0, "memory", "ledger"), []),
    (("attempts", 0, "memory", "ledger", "train"), 5),
    (("attempts", 0, "memory", "ledger", "train", "parts"), None),
    (("attempts", 0, "memory", "ledger", "train", "peak_bytes"), ABSENT),
    (("attempts", 0, "parameters"), "x"),
    (("attempts", 0, "parameters", "adapter"), 3.5),
    (("attempts", 0, "parameters", "budget_asked"), "3"),
    (("attempts", 0, "environment"), "x"),
    (("attempts", 0, "environment", "packages"), ["torch"]),
    (("attempts", 0, "task_about"), "x"),
    (("attempts", 0, "task_about", "classes"), 5),
    (("attempts", 0, "model_facts"), [1]),
    (("attempts", 0, "model_facts", "revision"), 5),
    (("attempts", 0, "primary_metric"), 5),
    (("attempts", 0, "higher_is_better"), "yes"),
    (("attempts", 0, "reference"), [1]),
    (("attempts", 0, "resolved"), "x"),
    (("attempts", 0, "concurrent_jobs"), "2"),
    (("attempts", 0, "train_loss_final"), "low"),
    (("attempts", 0, "state"), "great"),
    (("attempts", 0, "state"), ABSENT),
    (("attempts", 0, "attempt"), "1"),
    (("attempts", 0, "attempt"), ABSENT),
    (("attempts", 0), 5),
    (("attempts",), {}),
    (("config", "method"), None),
    (("config", "method"), "lora"),
    (("config", "method", "name"), 5),
    (("config", "method", "name"), ABSENT),
    (("config", "model"), 5),
    (("config", "model", "name"), [1]),
    (("config", "task"), ["x"]),
    (("config", "task", "name"), {"a": 1}),
    (("config", "trainer"), 5),
    (("config", "trainer", "learning_rate"), "fast"),
    (("config", "seed"), [1]),
    (("config", "seed"), "one"),
    (("config",), []),
    (("identity",), None),
    (("identity", "trainer", "learning_rate"), "fast"),
    (("experiments",), "demo"),
    (("experiments",), [[5]]),
    (("experiment_notes",), []),
    (("experiment_notes", "demo"), "x"),
    (("created_at",), 5),
    (("state",), None),
    (("schema_version",), "1"),
    (("schema_version",), True),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return root / whole(root)


@pytest.fixture(scope="module")
def record(good):
    return json.loads((good / "record.json").read_text())


def store_with(root, good, records):
    """A store of the good record and of others; returns the good one's id."""
    put(root, good.name, json.loads((good / "record.json").read_text()), good)
    for number, other in enumerate(records):
        put(root, f"{number:012d}", other, good)
    return good.name


def faults(record) -> str | None:
    try:
        read(record)
    except ValueError as error:
        return str(error)
    return None


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_what_no_reader_can_use_is_refused_by_its_place(record, path, value):
    assert faults(record) is None
    said = faults(mutant(record, path, value))
    place = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path)))
    assert said is not None and said.startswith(place) and "\n" not in said and len(said) < 400


def test_every_command_shows_the_good_record_and_warns_of_each_bad_one_once(tmp_path, good, record, caplog, capsys):
    root = tmp_path / "runs"
    run = store_with(root, good, [mutant(record, path, value) for path, value in WRONG])
    for command in (
        ["runs", "--store", root],
        ["runs", "--store", root, "--json"],
        ["report", "--store", root, "--out", tmp_path / "out"],
        ["tune", EXPERIMENT, "--store", root],
        ["compare", run, run, "--store", root],
    ):
        caplog.clear()
        assert status(*command) == 0, command
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err and (run in shown.out or "lora" in shown.out.lower())
        if command[0] in ("runs", "report") and command[1] == "--store":
            for number in range(len(WRONG)):
                assert sum(f"{number:012d}/record.json" in line for line in caplog.messages) == 1, WRONG[number]
    assert run in (tmp_path / "out" / "runs.csv").read_text()
    assert status("report", "memory", run, "--store", root) == 0 and "gradients" in capsys.readouterr().out
    assert status("export", run, "--to", "lora", "--store", root, "--out", tmp_path / "exported") == 2
    assert "has no adapter to export" in capsys.readouterr().err
    for command in (["compare", run, f"{3:012d}", "--store", root], ["export", f"{3:012d}", "--to", "lora"]):
        assert status(*command, "--store", root) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"schema_version": 1, "schema_version": 1}', "stands twice"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "no finite number"),
        ('{"a": 1e999}', "no finite number"),
        ("[" * 5000 + "]" * 5000, "nested more than"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested more than"),
        ('{"a": ' + "3" * 400 + "}", "beyond every float"),
        ('{"a": ' + "3" * 9000 + "}", "beyond every float"),
        ('{"a": "\\ud800"}', "surrogates"),
        ("{", "damaged"),
        ("5", "not a run record"),
        ("null", "not a run record"),
        ("", "damaged"),
    ],
)
def test_what_is_no_json_of_a_record(tmp_path, good, caplog, written, said):
    run = store_with(tmp_path, good, [written])
    with caplog.at_level(logging.WARNING):
        assert [found.id for found in Store(tmp_path).runs()] == [run]
    assert len(caplog.messages) == 1 and said in caplog.messages[0] and "\n" not in caplog.messages[0]
    with pytest.raises(UnreadableRecord):
        read_record(tmp_path / f"{0:012d}")


def test_a_record_that_is_no_text_no_file_or_larger_than_any(tmp_path, good, caplog):
    run = store_with(tmp_path, good, ["", "", "", ""])
    (tmp_path / f"{0:012d}" / "record.json").write_bytes(b'{"a": "\xff\xfe"}')
    for number in (1, 2):
        (tmp_path / f"{number:012d}" / "record.json").unlink()
    os.mkfifo(tmp_path / f"{1:012d}" / "record.json")
    (tmp_path / f"{2:012d}" / "record.json").mkdir()
    with (tmp_path / f"{3:012d}" / "record.json").open("wb") as stream:
        stream.truncate(2**31)
    assert [found.id for found in Store(tmp_path).runs()] == [run]
    assert len(caplog.messages) == 4 and any("not a regular file" in line for line in caplog.messages)
    assert any("2,147,483,648 bytes, expected at most" in line for line in caplog.messages)


def test_records_that_pass_are_shown_by_every_reader(tmp_path, good, record):
    """A seeded sample of all mutants that the schema lets pass: none of them takes a reader down."""
    draw = random.Random(0)
    passing = [
        (path, name, changed)
        for path in places(record)
        for name, value in [*VALUES.items(), ("absent", ABSENT)]
        if path[0] != "id" and faults(changed := mutant(record, path, value)) is None
    ]
    assert len(passing) > 300
    for number, (path, name, changed) in enumerate(draw.sample(passing, 40)):
        root = tmp_path / str(number)
        run = store_with(root, good, [changed])
        try:
            parts = report.sections(root)
            shown = "".join(map(markdown, parts)) + report.text(parts) + page("t", parts, None, None)
            flat.run_rows([found for part in parts for found in part.table.records])
            assert status("runs", "--store", root, "--json") == 0
            tuning.best_learning_rates(root, EXPERIMENT)
        except UserError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, path))} as {name}") from error
        else:
            assert run in shown


def test_keys_of_a_newer_version_are_kept(record):
    changed = mutant(record, ("attempts", 0, "metrics", "test", "new_metric"), 0.5)
    changed["attempts"][0] |= {"carbon": {"grams": 3}, "notes": ["x"]}
    assert faults(changed | {"signature": "x"}) is None


def test_a_run_whose_record_could_not_be_read_back_is_not_begun(tmp_path):
    with pytest.raises(UserError, match=r"^method\.name is 5, expected a valid text.*could not be read back"):
        Store(tmp_path).open({"method": {"name": 5}, "seed": 1})
    assert Store(tmp_path).runs() == []


@pytest.mark.parametrize(
    "relative", ["../../secret.jsonl", "/etc/passwd", "attempt-1/../../../secret.jsonl", "link.jsonl", "folder", "pipe"]
)
def test_no_file_outside_of_the_runs_folder_is_opened(tmp_path, good, record, caplog, relative):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"id": "1", "split": "test", "prediction": 1, "label": 1}\n')
    run = store_with(tmp_path / "runs", good, [])
    changed = mutant(record, ("attempts", 0, "files", "predictions", "path"), relative)
    folder = put(tmp_path / "runs", "000000000001", changed, good)
    (folder / "link.jsonl").symlink_to(secret)
    (folder / "folder").mkdir()
    (folder / "folder" / "weights").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    found = Store(tmp_path / "runs").get("000000000001")
    assert found.file("predictions") is None and found.file("curve") == folder / "attempt-1" / "curve.csv"
    assert len(caplog.messages) == 1 and "000000000001/record.json names the file" in caplog.messages[0]
    assert run in report.text(report.sections(tmp_path / "runs")) + page(
        "t", report.sections(tmp_path / "runs"), None, None
    )


def test_a_link_to_a_runs_folder_and_links_within_it_are_followed(tmp_path, good):
    run = store_with(tmp_path / "elsewhere", good, [])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / run).symlink_to(tmp_path / "elsewhere" / run)
    predictions = tmp_path / "elsewhere" / run / "attempt-1" / "predictions.jsonl"
    predictions.rename(predictions.with_name("kept.jsonl"))
    predictions.symlink_to("kept.jsonl")
    path = Store(tmp_path / "runs").get(run).file("predictions")
    assert path is not None and path.read_text()


@pytest.mark.parametrize("content", ["nonsense\n", '{"id": 1}\n[1]\n', "\x00\xff", "[" * 3000, '{"label": [1]}\n'])
def test_damaged_files_of_a_run_count_as_absent_in_a_report(tmp_path, good, caplog, content):
    run = store_with(tmp_path, good, [])
    for name in ("predictions.jsonl", "curve.csv"):
        (tmp_path / run / "attempt-1" / name).write_bytes(content.encode("latin1"))
    parts = report.sections(tmp_path)
    assert run in page("t", parts, None, None)
    assert any("predictions.jsonl" in line for line in caplog.messages) and "\n" not in "".join(caplog.messages)


def test_the_default_folder_of_a_report_is_below_reports(tmp_path, good, record, monkeypatch, capsys):
    name = "../../../escaped"
    store_with(tmp_path / "a" / "b" / "runs", good, [mutant(record, ("experiments",), [name])])
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert status("report", "--experiment", name) == 0
    capsys.readouterr()
    assert len(list((tmp_path / "a" / "b" / "reports").glob("*/report.md"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]

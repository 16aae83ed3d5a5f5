"""Records as typed parts: what is read is written back, what is misspelt is refused, older versions are brought up."""

import json

import pytest
from record_mutants import EXPERIMENT, whole

from rowsft.cli.main import main
from rowsft.record import LedgerMoment, Memory, PhaseMemory, migrated, plain, read, schema, unknown_keys
from rowsft.store import SCHEMA_VERSION, Store


def raw_of(path) -> dict:
    return json.loads((path / "record.json").read_text())


@pytest.fixture
def run(tmp_path):
    return tmp_path / whole(tmp_path)


def older(path) -> dict:
    """Make the record one of version 1, with a key that no version has; returns it."""
    raw = raw_of(path) | {"schema_version": 1, "signature": "x"}
    (attempt,) = raw["attempts"]
    attempt["knobs"] = attempt.pop("resolved")
    attempt["memory"]["train"]["swapped_bytes"] = 7
    (path / "record.json").write_text(json.dumps(raw))
    return raw


def test_what_is_read_is_written_back(run):
    raw = raw_of(run) | {"signature": "x"}
    raw["attempts"][0] |= {"carbon": {"grams": 3}, "energy": None, "steps": 4, "train_loss_final": 1}
    written = plain(read(json.loads(json.dumps(raw))))
    assert written == raw and json.dumps(written["attempts"][0]["steps"]) == "4"
    assert sorted(unknown_keys(read(raw))) == ["attempts.0.carbon", "signature"]


def test_what_was_not_recorded_is_none_down_to_the_number(tmp_path):
    with Store(tmp_path).open({"seed": 1, "method": {"name": "lora"}}) as folder:
        folder.begin().finish("done")
        result = folder.record.result
    assert result.memory.train.peak_allocated_bytes is None and result.step_seconds.median is None
    assert result.metrics == {} and result.files == {} and result.error is None and result.warm_head.steps is None
    assert set(raw_of(folder.path)["attempts"][0]) == {
        *("attempt", "state", "started_at", "ended_at", "error", "pid", "seconds"),
    }


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"mertics": {}}, "mertics"),
        ({"memory": {"trian": {}}}, "memory.trian"),
        ({"memory": {"train": {"peak_bytes": 5}}}, "memory.train.peak_bytes"),
        ({"files": {"curve": {"path": "x", "sha": "y"}}}, "files.curve.sha"),
        ({"memory": {"kind": 5}}, "memory.kind is 5"),
        ({"metrics": {"test": {"accuracy": "0.5"}}}, 'metrics.test.accuracy is "0.5"'),
    ],
)
def test_what_a_record_does_not_have_is_not_written(tmp_path, fields, place):
    with Store(tmp_path).open({"seed": 1, "method": {"name": "lora"}}) as folder:
        attempt = folder.begin()
        before = (folder.path / "record.json").read_bytes()
        with pytest.raises(ValueError, match=place):
            attempt.update(**fields)
        assert (folder.path / "record.json").read_bytes() == before
        attempt.update(task_about={"own": 1}, model_facts={"own": 1})
        attempt.finish("done")


def test_parts_are_written_as_mappings_are(tmp_path):
    moment = LedgerMoment(peak_bytes=5, parts={"gradients": 5}, measured_peak_bytes=None, unattributed_bytes=None)
    with Store(tmp_path).open({"seed": 1, "method": {"name": "lora"}}) as folder:
        attempt = folder.begin(memory=Memory(kind="cuda_allocator", load=PhaseMemory(resident_peak_bytes=3)))
        attempt.update(memory=Memory.of(train=PhaseMemory.of(peak_allocated_bytes=8), ledger={"load": moment}))
        attempt.finish("done")
    memory = Store(tmp_path).get(folder.id).result.memory
    assert (memory.kind, memory.load.resident_peak_bytes, memory.train.peak_allocated_bytes) == ("cuda_allocator", 3, 8)
    assert memory.ledger["load"] == moment and memory.select == PhaseMemory()


def test_a_changed_part_keeps_the_keys_of_a_newer_version(run):
    raw = raw_of(run)
    raw["attempts"][0]["memory"]["train"]["swapped_bytes"] = 7
    train = read(raw).attempts[0].memory.train.changed(peak_allocated_bytes=9)
    assert plain(train)["swapped_bytes"] == 7 and train.peak_allocated_bytes == 9
    with pytest.raises(TypeError, match="PhaseMemory has no peak_bytes"):
        train.changed(peak_bytes=9)


def test_a_record_of_version_1_is_shown_as_ever_and_written_as_version_2(run, capsys):
    before = older(run)
    record = Store(run.parent).get(run.name)
    assert record.result.resolved == {"r": 8} and raw_of(run) == before, "reading writes nothing"
    with pytest.raises(SystemExit):
        main(["runs", "--store", str(run.parent), "--experiment", EXPERIMENT])
    assert run.name in capsys.readouterr().out
    with Store(run.parent).open(record.config) as folder:
        folder.begin().finish("failed")
    after = raw_of(run)
    assert after["schema_version"] == SCHEMA_VERSION == 2 and after["signature"] == "x"
    expected = before["attempts"][0]
    expected["resolved"] = expected.pop("knobs")
    assert after["attempts"][0] == expected and [attempt["attempt"] for attempt in after["attempts"]] == [1, 2]


def test_a_record_of_version_1_is_checked_too(run):
    raw = older(run)
    raw["attempts"][0]["knobs"] = "x"
    with pytest.raises(ValueError, match=r'^attempts\[0\]\.resolved is "x"'):
        read(migrated(raw))
    assert migrated({"schema_version": 1, "attempts": [5]})["attempts"] == [5]


def test_the_published_schema_is_up_to_date():
    assert json.loads(schema.PATH.read_text()) == json.loads(schema.text()), "run python -m rowsft.record.schema"


def test_a_record_follows_the_published_schema(run):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(json.loads(schema.PATH.read_text())).validate(raw_of(run))

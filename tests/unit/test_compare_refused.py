"""Files that no comparison can be made of: each is refused in one short line, never with a traceback."""

import json

import pytest
from compare_factory import put, row, two_attempts, write
from refusals import refusal

from rowsft.report.compare import compare
from rowsft.store import Store


def refused(a, b):
    """The message that the comparison is refused with."""
    said = refusal(compare, str(a), str(b))
    assert len(said) < len(str(b)) + 320
    return said


def nested(kind, depth):
    """JSON so deep, of lists or mappings."""
    return {"lists": "[" * depth + "]" * depth, "mappings": '{"a": ' * depth + "1" + "}" * depth}[kind]


# Python ends near 1000: the parser there, whoever walks the tree sooner.
@pytest.mark.parametrize("depth", [99, 600, 100_000])
@pytest.mark.parametrize("kind", ["lists", "mappings"])
def test_nesting_without_end(tmp_path, depth, kind):
    good, bad = (write(tmp_path / name / "step.json", [row("rows", flops=None)]) for name in ("good", "bad"))
    put(tmp_path / "bad" / "step.json", '"2"', nested(kind, depth))
    said = refused(good, bad)
    assert said.startswith(f"{bad}: nested more than 100 deep; expected a file that one of benchmarks/ wrote: make it")
    before, after = two_attempts(tmp_path, resolved="here")
    put(after / "record.json", '"here"', nested(kind, depth))
    said = refused(before, after)
    assert said.startswith(f"{after}/record.json is damaged (ValueError: nested more than 100 deep); run it again")
    # Whoever reads the whole store is spared it.
    assert Store(after.parent).runs() == []


def test_as_deep_as_files_may_be(tmp_path):
    files = [write(tmp_path / name / "step.json", [row("rows")]) for name in ("a", "b")]
    for name in ("a", "b"):
        put(tmp_path / name / "step.json", '"2"', nested("mappings", 98))
    assert compare(*files).settings == {}


@pytest.mark.parametrize(
    "line",
    [nested("lists", 100_000), "[1]", "null", '{"id": 1, "accuracy": 1%s}' % ("0" * 400)],
    ids=["nested", "list", "null", "large"],
)
def test_predictions_that_are_no_examples(tmp_path, line):
    before, after = two_attempts(tmp_path)
    path = after / "attempt-1" / "predictions.jsonl"
    path.write_text(line.replace("{", '{"split": "test", ') + "\n")
    said = refused(before, after)
    assert said.startswith(f"{path} is damaged (") and "expected one JSON object an example" in said


def test_an_integer_of_thousands_of_digits(tmp_path):
    good, bad = (write(tmp_path / name / "step.json", [row("rows")]) for name in ("good", "bad"))
    put(tmp_path / "bad" / "step.json", "3000000000", "3" * 5000)
    said = refused(good, bad)
    assert said.startswith(f"{bad}: the integer 3333") and "(5,000 characters) is longer than 4,300 digits; exp" in said
    before, after = two_attempts(tmp_path, steps="here")
    put(after / "record.json", '"here"', "3" * 5000)
    assert "record.json is damaged (ValueError: the integer 3333" in refused(before, after)


@pytest.mark.parametrize(
    "written, said",
    [("3" * 400, "3333"), ("true", "true;"), ('"0.5"', '"0.5";'), ("-" + "3" * 400, "-333")],
    ids=["large", "truth", "text", "small"],
)
def test_what_is_no_number_where_one_is_meant(tmp_path, written, said):
    good, bad = (write(tmp_path / name / "step.json", [row("rows")]) for name in ("good", "bad"))
    put(tmp_path / "bad" / "step.json", "3000000000", written)
    expected = "; expected a number of moderate size, or null where nothing was measured: "
    found = refused(good, bad)
    assert found.startswith(f"{bad}: llama.rows.flops is {said}") and expected + "measure anew" in found
    for index, (name, fields) in enumerate(
        {
            "metrics.test.accuracy": {"metrics": {"test": {"accuracy": "here"}}},
            "parameters.adapter": {"parameters": {"adapter": "here", "adapter_dtype": "float32"}},
            "memory.train.peak_allocated_bytes": {"memory": {"train": {"peak_allocated_bytes": "here"}}},
            "seconds.train": {"seconds": {"train": "here"}},
            "step_seconds.median": {"step_seconds": {"median": "here"}},
            "tokens_per_second": {"tokens_per_second": "here"},
        }.items()
    ):
        before, after = two_attempts(tmp_path / str(index), **fields)
        put(after / "record.json", '"here"', written)
        found = refused(before, after)
        assert found.startswith(f"{after}/record.json is ") and "run it again" in found
        # An integer beyond every float is refused before the record is looked at.
        assert "beyond every float" in found or f"attempts[0].{name} is {said.rstrip(';')}, expected a valid " in found


def test_texts_of_a_method_that_is_called_after_a_number(tmp_path):
    files = [write(tmp_path / name / "step.json", [row("few_bytes", dtype="bfloat16")]) for name in "ab"]
    assert "llama.few_bytes.dtype" not in [number.name for number in compare(*files).numbers]


@pytest.mark.parametrize("part", ["metrics", "memory", "seconds", "step_seconds", "environment", "parameters"])
def test_a_part_of_a_record_that_is_no_mapping(tmp_path, part):
    before, after = two_attempts(tmp_path, **{part: [1, 2]})
    assert f"(attempts[0].{part} is [1, 2], expected a valid mapping)" in refused(before, after)


@pytest.mark.parametrize("split", [3, ["accuracy"], "accuracy"])
def test_metrics_of_a_split_that_are_no_mapping(tmp_path, split):
    before, after = two_attempts(tmp_path, metrics={"test": split})
    assert f"(attempts[0].metrics.test is {json.dumps(split)}, expected a valid mapping)" in refused(before, after)


@pytest.mark.parametrize("value", [[1], {}, {"mean": 1}])
def test_a_metric_of_several_values(tmp_path, value):
    before, after = two_attempts(tmp_path, metrics={"test": {"accuracy": value}})
    assert "attempts[0].metrics.test.accuracy is " in refused(before, after)


def test_a_path_that_the_system_refuses(tmp_path):
    good = write(tmp_path / "step.json", [row("rows")])
    said = refused(good, "x" * 5000)
    assert said.startswith("xxxx") and "cannot be looked at (File name too long); expected a run's id or folder" in said

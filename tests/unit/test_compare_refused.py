"""Files that no comparison can be made of: each is refused in one short line, never with a traceback."""

import pytest
from compare_factory import row, two_attempts, write

from rowsft.compare import compare
from rowsft.errors import UserError
from rowsft.store import Store


def refused(a, b):
    """The message that the comparison is refused with."""
    with pytest.raises(UserError) as error:
        compare(str(a), str(b))
    said = str(error.value)
    assert "\n" not in said and len(said) < len(str(b)) + 320
    return said


def put(path, written, instead):
    """Other text into a file."""
    text = path.read_text()
    assert text.count(written) == 1
    path.write_text(text.replace(written, instead))


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
    before, after = two_attempts(tmp_path, knobs="here")
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

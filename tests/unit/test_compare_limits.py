"""Limits on how far a number may move: how they are read, what they name, what becomes of them."""

import pytest
from compare_factory import amend, compared, limited, lora_and_rows, status, two_attempts

from rowsft.errors import UserError
from rowsft.report.compare.limits import parse
from rowsft.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lora_and_rows(tmp_path_factory.mktemp("compare") / "runs")


@pytest.mark.parametrize(
    "limit, outcome",  # A: 100 s of training and accuracy 0.8, B: 110 s and 0.7
    [
        ("seconds.train=+10%", "within"),
        ("seconds.train=+9.99%", "over"),
        ("seconds.train=-0", "within"),
        ("seconds.train=10", "within"),
        ("seconds.train=9.9", "over"),
        ("seconds.train=0%", "over"),
        ("test.accuracy=-0.1", "within"),
        ("test.accuracy=-0.09", "over"),
        ("test.accuracy=+0", "within"),
        ("test.accuracy=0.05", "over"),
        ("test.accuracy=1e-1", "within"),
        ("test.accuracy=-12.5%", "within"),
        ("test.accuracy=-12.4%", "over"),
    ],
)
def test_sign_and_percent_of_a_limit(tmp_path, limit, outcome):
    fields = [{"seconds": {"train": s}, "metrics": {"test": {"accuracy": a}}} for s, a in ((100, 0.8), (110, 0.7))]
    folders = two_attempts(tmp_path, **fields[1])
    amend(Store(tmp_path / "before"), folders[0].name, **fields[0])
    assert limited(folders, limit) == outcome


@pytest.mark.parametrize(
    "a, b, limit, allowed",
    [
        (2**53, 2**53 + 1, "x=+0", False),
        (2**53 + 1, 2**53, "x=+0", True),
        (2**53 + 1, 2**53, "x=0", False),
        (0.3, 0.4, "x=+0.1", True),
        (1.0, 1.1, "x=+10%", True),
        (1.0, 1.1000001, "x=+10%", False),
        (0, 0, "x=+10%", True),
        (0, 1, "x=+10%", False),
        (-2.0, -2.3, "x=-10%", False),
        (-2.0, -2.2, "x=-10%", True),
    ],
)
def test_limits_are_exact(a, b, limit, allowed):
    assert parse(limit).allows(a, b) is allowed


@pytest.mark.parametrize("text", ["a", "a=", "=+1%", "a=+-1", "a=1/3", "a=+1 MiB", "a=1e999999999"])
def test_a_limit_that_cannot_be_read(pair, text):
    with pytest.raises(UserError, match="^--max-change .*expected NAME=LIMIT"):
        compared(pair, text)


@pytest.mark.parametrize("text", ["x" * 5000, "x" * 5000 + "=1", "metrics.*.accuracy=1\n" + "x" * 5000])
def test_a_limit_that_is_refused_is_shown_short_and_in_one_line(pair, text):
    with pytest.raises(UserError) as error:
        compared(pair, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and text[:7] in str(error.value)


def test_a_name_may_be_the_end_of_one_name(pair):
    (verdict,) = compared(pair, "train.peak_allocated_bytes=+0").verdicts
    assert (verdict.name, verdict.outcome) == ("memory.train.peak_allocated_bytes", "within")
    # The name that a benchmark gives the same number.
    assert compared(pair, "step_seconds_median=+0").verdicts[0].name == "step_seconds.median"


def test_ambiguous_and_unknown_names_list_candidates(pair):
    with pytest.raises(UserError, match=r"the end of 2 names: metrics\.validation\.accuracy, metrics\.test\.accuracy;"):
        compared(pair, "accuracy=-0.01")
    with pytest.raises(UserError, match=r"no number is called acuracy; the nearest: metrics\.\w+\.accuracy, "):
        compared(pair, "acuracy=-0.01")
    with pytest.raises(UserError, match="no number is called eak_allocated_bytes;"):
        compared(pair, "eak_allocated_bytes=+1")
    with pytest.raises(UserError, match=r"no number is called \*\.nothing;"):
        compared(pair, "*.nothing=+1")


def test_wildcards_name_many(pair):
    verdicts = compared(pair, "metrics.*=0.5", "seconds.t*=+0").verdicts
    assert [verdict.name for verdict in verdicts[:2]] == ["metrics.validation.accuracy", "metrics.test.accuracy"]
    assert {verdict.name for verdict in verdicts[2:]} == {"seconds.train", "seconds.total"}


def test_wildcards_leave_out_what_neither_side_has_measured(tmp_path):
    memory = {"train": {"peak_allocated_bytes": 5, "peak_reserved_bytes": None}, "select": None}
    folders = two_attempts(tmp_path, memory=memory)
    amend(Store(tmp_path / "before"), folders[0].name, memory=memory)
    assert limited(folders, "*peak*bytes=+0") == "within"
    assert limited(folders, "*reserved*=+0") == "missing"


def test_a_number_missing_under_a_limit_breaks_it(pair):
    comparison = compared(pair, "select.peak_allocated_bytes=+100%")
    assert not comparison.within and comparison.verdicts[0].reason == "not measured in A"


def test_exit_status_and_every_limit_in_a_line_of_its_own(pair, capsys):
    store, lora, rows = pair
    where = (lora, rows, "--store", store.root)
    assert status(capsys, *where)[0] == 0
    code, out, _ = status(capsys, *where, "--max-change", "train.peak_allocated_bytes=+0")
    assert code == 0 and "1 of 1 within limits" in out
    limits = ("--max-change", "tokens_per_second=+1%", "--max-change", "test.accuracy=+50%")
    code, out, err = status(capsys, *where, *limits, "--max-change", "select.peak_allocated_bytes=0")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    over = "over     tokens_per_second=+1%  tokens_per_second: 1,428.6 -> 1,639.3 (+210.8, +14.75 %)"
    assert over in lines and lines[-1] == "1 of 3 within limits"
    assert any(line.startswith("within   test.accuracy=+50%  metrics.test.accuracy: ") for line in lines)
    assert any(line.startswith("missing  ") and line.endswith(": not measured in A") for line in lines)
    code, out, err = status(capsys, *where, "--max-change", "nonsense")
    assert (code, out) == (2, "") and err.startswith("rowsft: error: --max-change nonsense: ") and err.count("\n") == 1

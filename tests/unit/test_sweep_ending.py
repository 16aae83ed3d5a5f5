"""Exit statuses in words, and options that stand between overrides."""

import pytest
from refusals import refusal

from rowsft.cli.arguments import parsed_arguments
from rowsft.cli.main import parser_of
from rowsft.sweep.ending import in_words, signal_of


@pytest.mark.parametrize(
    ("status", "number", "said"),
    [
        (-9, 9, "killed by signal 9 (SIGKILL): out of memory?"),
        (137, 9, "killed by signal 9 (SIGKILL): out of memory?"),
        (-11, 11, "killed by signal 11 (SIGSEGV): a fault in native code"),
        (134, 6, "killed by signal 6 (SIGABRT): a fault in native code"),
        (-10, 10, "killed by signal 10 (SIGUSR1)"),
        (-40, 40, "killed by signal 40"),
        (1, None, "ended with status 1"),
        (255, None, "ended with status 255"),
        (0, None, "ended with status 0"),
    ],
)
def test_an_exit_status_in_words(status, number, said):
    assert (signal_of(status), in_words(status)) == (number, said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "a=1", "--rerun", "b=2,3", "c=4"],
        ["sweep", "--rerun", "a=1", "b=2,3", "c=4"],
        ["run", "a=1", "b=2,3", "--rerun", "c=4"],
        ["plan", "a=1", "--card", "24", "b=2,3", "--json", "c=4"],
    ],
)
def test_options_may_stand_between_overrides(arguments):
    parsed = parsed_arguments(parser_of(None), arguments)
    assert parsed.overrides == ["a=1", "b=2,3", "c=4"]
    assert getattr(parsed, "rerun", True) and getattr(parsed, "card", None) in (None, "24")


@pytest.mark.parametrize("arguments", [["sweep", "a=1", "--reruns"], ["runs", "tail", "x", "y"], ["tune", "x", "y"]])
def test_what_no_option_is_called_is_refused(arguments):
    assert f"unrecognized arguments: {arguments[-1]}" in refusal(parsed_arguments, parser_of(None), arguments)

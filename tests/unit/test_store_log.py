"""What a run prints is kept with its attempt: whole lines, without secrets, and whatever becomes of the run."""

import io
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
from report_factory import config

from rowsft.cli.main import main
from rowsft.errors import UserError
from rowsft.store import Store
from rowsft.store.following import log_lines
from rowsft.store.run_log import NAME, RunLog


@pytest.fixture
def stdout():
    """What stands in stdout's place: see `logged`."""
    return io.StringIO()


@contextmanager
def logged(stdout):
    """A log of what is printed while `stdout` stands in its place."""
    with redirect_stdout(stdout), RunLog() as log:
        yield log
        assert sys.stdout is not stdout


def kept(path, stdout, *writes):
    """What a log has of texts written to stdout one after the other."""
    with logged(stdout) as log:
        log.begin(path)
        for text in writes:
            sys.stdout.write(text)
    return path.read_text()


def test_what_was_printed_before_and_after_there_was_a_file_is_kept_in_order(tmp_path, stdout, capsys):
    before = sys.stdout, sys.stderr
    with logged(stdout) as log:
        print("first")
        print("second", file=sys.stderr)
        log.begin(tmp_path / NAME)
        print("third")
        log.close()
        print("too late")
    assert (sys.stdout, sys.stderr) == before
    text = (tmp_path / NAME).read_text()
    assert text == "first\nsecond\nthird\n"
    assert stdout.getvalue() == "first\nthird\ntoo late\n"
    assert capsys.readouterr().err.startswith("second\n")


def test_a_log_that_got_no_file_leaves_none(tmp_path, stdout):
    with logged(stdout):
        print("done already")
    assert stdout.getvalue() == "done already\n" and not list(tmp_path.iterdir())


def test_lines_are_on_disk_as_soon_as_they_are_whole(tmp_path, stdout):
    path = tmp_path / NAME
    with logged(stdout) as log:
        log.begin(path)
        print("one ", end="")
        assert path.read_text() == ""
        print("line")
        assert path.read_text() == "one line\n"
        print("no end", end="")
    assert path.read_text() == "one line\nno end\n"


def test_a_bar_leaves_its_last_state_and_colours_leave_nothing(tmp_path, stdout):
    bar = ["\r 10%", "\r 20%", "\r", "100%", "\n", "next\r\n"]
    assert kept(tmp_path / "bar", stdout, *bar) == "100%\nnext\n"
    assert stdout.getvalue().startswith("".join(bar)), "the terminal gets it as it is"
    assert kept(tmp_path / "cleared", stdout, "\r 50%", "\r     \r", "after\n") == "after\n"
    assert kept(tmp_path / "colour", stdout, "\x1b[1;31mred\x1b[0m \x1b]0;title\x07\n") == "red \\x1b]0;title\\x07\n"
    assert kept(tmp_path / "halves", stdout, "\ud800 half\n") == "\\ud800 half\n"
    long = kept(tmp_path / "long", stdout, *["x" * 1000] * 200)
    assert long.replace("\n", "") == "x" * 200_000, "what has no line end does not fill the memory"


def test_secrets_are_taken_out_also_of_what_was_printed_before_they_were_known(tmp_path, stdout, monkeypatch):
    with logged(stdout) as log:
        print("token: hunter2hunter2")
        monkeypatch.setenv("SOME_API_TOKEN", "hunter2hunter2")
        log.begin(tmp_path / NAME)
        print("again hunter2hunter2", file=sys.stderr)
    text = (tmp_path / NAME).read_text()
    assert "hunter2" not in text and text.count("***") == 2


def test_a_full_disk_costs_the_log_and_one_warning(stdout, capsys):
    with logged(stdout) as log:
        log.begin(Path("/dev/full"))
        print("one")
        print("two")
    assert stdout.getvalue() == "one\ntwo\n"
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("rowsft: warning: the run goes on without its log: OSError: ")
    with logged(stdout) as log:
        log.begin(Path("/nowhere/log.txt"))
        print("three")
    assert stdout.getvalue().endswith("three\n") and "FileNotFoundError" in capsys.readouterr().err


def test_threads_write_whole_lines(tmp_path, stdout):
    lines = [f"{letter * 50}" for letter in "abcdef"]
    with logged(stdout) as log:
        log.begin(tmp_path / NAME)
        threads = [threading.Thread(target=lambda text=text: [sys.stderr.write(f"{text}\n")] * 100) for text in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set((tmp_path / NAME).read_text().splitlines()) == set(lines)


def failed(store, stdout):
    """A run that ended with an exception, with its log."""
    with pytest.raises(ZeroDivisionError), logged(stdout) as log, store.open(config()) as run:
        run.begin().keep_log(log)
        print("about to divide")
        _ = 1 / 0
    return store.get(run.id)


def test_a_failure_leaves_its_traceback_and_the_record_no_entry_of_the_log(tmp_path, stdout):
    record = failed(Store(tmp_path), stdout)
    text = (record.folder / "attempt-1" / NAME).read_text()
    assert text.startswith("about to divide\nTraceback ") and text.endswith(
        "ZeroDivisionError: division by zero\nfailed\n"
    )
    assert record.latest.error.traceback.strip() in text and not record.latest.files


def test_a_run_that_is_withdrawn_leaves_no_log(tmp_path, stdout):
    with logged(stdout) as log, Store(tmp_path).open(config()) as run:
        run.begin().keep_log(log)
        print("something")
        run.withdraw()
        print("more")
    assert not list(tmp_path.iterdir())


RUNNING = """
import os, sys
sys.path.insert(0, {here!r})
from report_factory import config
from rowsft.store import Store
from rowsft.store.run_log import RunLog
with RunLog() as log, Store({store!r}).open(config()) as run:
    attempt = run.begin()
    attempt.keep_log(log)
    for number in range(5):
        print("line", number, flush=True)
    sys.stdin.readline()
    print("the last line", flush=True)
    if "finish" in sys.argv:
        attempt.finish("done")
    else:
        os.kill(os.getpid(), 9)
"""


def running(store, *arguments):
    """A process that works on a run until it is sent a line, and then finishes it or is killed."""
    script = RUNNING.format(here=str(Path(__file__).parent), store=str(store))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(5):
        process.stdout.readline()
    (record,) = Store(store).runs()
    assert record.state == "running"
    return process, record


def release(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("arguments", [["finish"], []])
def test_a_run_is_followed_until_it_is_over_however_it_ends(tmp_path, arguments):
    process, record = running(tmp_path, *arguments)
    try:
        lines = log_lines(record, 2, follow=True)
        assert [next(lines), next(lines)] == ["line 3", "line 4"]
        release(process)
        assert list(lines) == ["the last line", *(["done"] if arguments else [])]
        assert list(log_lines(record, 99, follow=False))[:6] == [f"line {n}" for n in range(5)] + ["the last line"]
        assert process.wait() == (0 if arguments else -signal.SIGKILL)
    finally:
        process.kill()


def test_without_following_a_run_that_goes_on_is_left_alone(tmp_path):
    process, record = running(tmp_path)
    try:
        assert list(log_lines(record, 1, follow=False)) == ["line 4"]
        assert list(log_lines(record, 0, follow=False)) == []
    finally:
        process.kill()
        process.wait()


def test_the_command_prints_the_last_lines(tmp_path, stdout, capsys):
    store = Store(tmp_path)
    record = failed(store, stdout)
    capsys.readouterr()

    def told(*options):
        with pytest.raises(SystemExit) as ended:
            main(["runs", "tail", "--store", str(tmp_path), *options])
        return ended.value.code, capsys.readouterr()

    code, printed = told(record.id[:6], "-n", "2")
    assert (code, printed.out) == (0, "ZeroDivisionError: division by zero\nfailed\n")
    assert told(record.id, "--no-follow")[1].out.startswith("about to divide\n")
    assert told(record.id, "-n", "-1")[0] == 2
    assert "is not in it" in told("zzz")[1].err


def test_what_has_no_log_says_so(tmp_path):
    store = Store(tmp_path)
    with store.open(config()) as run:
        pass
    with pytest.raises(UserError, match="is pending and has no attempt yet"):
        log_lines(store.get(run.id), 1, follow=False)
    with store.open(config()) as run:
        run.begin().finish("done")
    with pytest.raises(UserError, match="attempt 1 has no log"):
        log_lines(store.get(run.id), 1, follow=True)
    # A link that leads out of the run is not followed.
    (tmp_path / "other").write_text("secret")
    (run.path / "attempt-1" / NAME).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="attempt 1 has no log"):
        log_lines(store.get(run.id), 1, follow=True)

"""What may stand in a store besides whole records: it hangs nothing, crashes nothing and hides nothing."""

import fcntl
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rowsft.errors import UserError
from rowsft.store import Store
from rowsft.store.files import remove_leftovers, write_atomic
from rowsft.store.lock import is_held
from rowsft.store.machine import here

CONFIG = {"seed": 1, "method": {"name": "lora"}}


def finished(root, **changes):
    with Store(root).open({**CONFIG, **changes}) as run:
        run.begin().finish("done", metrics={})
    return run.path


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    import socket

    # A socket's own path is short.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_loop, make_device, make_socket])
def test_what_is_no_file_is_a_damaged_record(tmp_path, caplog, make):
    good, bad = finished(tmp_path, seed=2), finished(tmp_path)
    (bad / "record.json").unlink()
    make(bad / "record.json")
    with caplog.at_level(logging.WARNING):
        assert [record.id for record in Store(tmp_path).runs()] == [good.name]
    assert [str(bad) in message and "\n" not in message for message in caplog.messages] == [True]
    assert not Store(tmp_path).is_done(bad.name)
    with pytest.raises(UserError):
        Store(tmp_path).get(bad.name)


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_device])
def test_a_run_whose_record_is_no_file_starts_anew(tmp_path, make):
    path = finished(tmp_path) / "record.json"
    path.unlink()
    make(path)
    with Store(tmp_path).open(CONFIG) as run:
        assert run.begin().number == 2
    assert os.path.lexists(path.parent / "record.json.corrupt-1")


def test_a_lock_that_is_a_pipe_hangs_no_reader(tmp_path):
    run = finished(tmp_path)
    (run / "lock").unlink()
    os.mkfifo(run / "lock")
    assert not is_held(run)


@pytest.mark.parametrize("name", ["attempt-7x", "attempt-", "attempt-²", "attempt-3 (copy)", "attempt-old"])
def test_a_folder_called_like_an_attempt_is_not_counted(tmp_path, name):
    run = finished(tmp_path)
    (run / name).mkdir()
    with Store(tmp_path).open(CONFIG) as folder:
        assert folder.begin().number == 2


def test_a_file_where_a_run_should_be_is_one_line(tmp_path):
    run = finished(tmp_path)
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
    run.write_text("x")
    assert Store(tmp_path).runs() == [] and not is_held(run) and not Store(tmp_path).is_done(run.name)
    with pytest.raises(UserError, match=run.name):
        Store(tmp_path).open(CONFIG)


def test_what_lies_about_in_a_store_does_not_matter(tmp_path, caplog):
    run = finished(tmp_path)
    for name in ("lost+found", "scores", "copy of runs/0123456789ab", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "copy of runs" / "0123456789ab" / "record.json").write_text("{")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    make_loop(tmp_path / "fedcba987654")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        assert [record.id for record in Store(tmp_path).runs()] == [run.name]
    assert not caplog.messages


def test_temporary_files_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    (tmp_path / "scores").mkdir()
    place = here(tmp_path)
    dead, alive = tmp_path / "scores" / f".a.{place}.1.tmp", tmp_path / "scores" / f".b.{place}.2.tmp"
    dead.write_bytes(b"half")
    # Of a writer elsewhere nobody here can tell whether it lives, but none of them writes for a day.
    elsewhere, old = tmp_path / "scores" / ".c.0123abcd.3.tmp", tmp_path / "scores" / ".d.0123abcd.4.tmp"
    elsewhere.write_bytes(b"half")
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    with alive.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        Store(tmp_path).open(CONFIG).close()
        assert not dead.exists() and alive.exists()
    remove_leftovers(tmp_path / "scores")
    assert [path.name for path in (tmp_path / "scores").iterdir()] == [elsewhere.name]
    remove_leftovers(tmp_path / "absent")


def test_a_writer_killed_in_the_middle_leaves_nothing_for_ever(tmp_path):
    """Killed by the system for a file too large while it writes scores: the next opening removes what it left."""
    code = """
import os, signal, sys
from pathlib import Path
from rowsft.store import files
real = os.fsync
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Path(sys.argv[1]).mkdir(parents=True)
files.write_atomic(Path(sys.argv[1]) / "x.safetensors", b"half")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "scores")], check=False)
    assert done.returncode == -9 and len(list((tmp_path / "scores").iterdir())) == 1
    Store(tmp_path).open(CONFIG).close()
    assert not list((tmp_path / "scores").iterdir())


def test_a_cleaner_never_takes_a_file_from_under_its_writer(tmp_path):
    cleaner = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys\nfrom rowsft.store.files import remove_leftovers\nprint(flush=True)\n"
            "while True: remove_leftovers(sys.argv[1])",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    cleaner.stdout.readline()
    try:
        for number in range(200):
            write_atomic(tmp_path / "x", str(number).encode())
            assert (tmp_path / "x").read_text() == str(number)
    finally:
        cleaner.kill()
        cleaner.communicate()


def test_the_scratch_of_a_killed_training_goes_when_the_run_is_opened_again(tmp_path):
    code = """
import os, signal, sys
from rowsft.store import Store
with Store(sys.argv[1]).open({"seed": 1, "method": {"name": "lora"}}) as run, run.begin().scratch() as folder:
    (folder / "checkpoint").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert list(tmp_path.rglob("checkpoint"))
    Store(tmp_path).open(CONFIG).close()
    assert not list(tmp_path.rglob("checkpoint"))


def test_why_a_process_died_before_it_could_begin_is_entered(tmp_path):
    Store(tmp_path).record_death(CONFIG, 4242, "killed by signal 9")
    (record,) = Store(tmp_path).runs()
    assert (record.state, record.latest.error.message, record.latest.pid) == (
        "interrupted",
        "killed by signal 9",
        4242,
    )
    # Said twice, it is the same death.
    Store(tmp_path).record_death(CONFIG, 4242, "killed by signal 9")
    assert len(Store(tmp_path).runs()[0].attempts) == 1


AS_NOBODY = """
import contextlib, io, locale, os, sys
from rowsft.cli.main import main
# The other user may have no right to read this Python: what the command imports is imported before.
for arguments in (sys.argv[1:], ["runs", "--store", "absent"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            main(arguments)
os.setgid(65534); os.setuid(65534)
main(sys.argv[1:])
"""


@pytest.fixture
def as_nobody(tmp_path_factory):
    """Runs the command line as a user without rights on a store of root's."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    import shutil
    import tempfile

    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)

    def run(*arguments):
        repository = Path(__file__).parents[2]
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(repository), "HOME": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )

    yield root, run
    shutil.rmtree(root)


def test_a_store_of_another_user_is_one_line_and_not_an_empty_one(as_nobody):
    root, run = as_nobody
    finished(root / "runs")
    (root / "runs").chmod(0o700)
    done = run("runs", "--store", "runs", "--json")
    assert done.returncode == 2 and "access is refused" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_run_of_another_user_is_skipped_with_a_line(as_nobody):
    root, run = as_nobody
    (root / "runs").mkdir()
    finished(root / "runs", seed=2)
    hidden = finished(root / "runs")
    hidden.chmod(0o700)
    done = run("runs", "--store", "runs", "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 1
    assert hidden.name in done.stderr and "skipped" in done.stderr and done.stderr.count("\n") == 1


def test_a_finished_run_is_read_whatever_its_lock_is(as_nobody):
    root, run = as_nobody
    (root / "runs").mkdir()
    (finished(root / "runs") / "lock").chmod(0o600)
    done = run("runs", "--store", "runs", "--json")
    assert done.returncode == 0 and [entry["state"] for entry in json.loads(done.stdout)] == ["done"], done.stderr


def test_a_run_that_is_refused_leaves_nothing_and_one_that_was_there_stays(tmp_path):
    with pytest.raises(UserError, match="seed is"):
        Store(tmp_path / "runs").open({**CONFIG, "seed": "x"})
    assert not (tmp_path / "runs").exists()
    run = finished(tmp_path / "runs")
    with pytest.raises(UserError, match="seed is"):
        Store(tmp_path / "runs").open({**CONFIG, "seed": "x"})
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == [run.name]
    with Store(tmp_path / "runs").open(CONFIG), pytest.raises(UserError, match="worked on by"):
        Store(tmp_path / "runs").open(CONFIG)
    assert (run / "record.json").exists() and (run / "lock").exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system needs root on Linux")
def test_a_full_disk_is_one_line_wherever_a_run_comes_upon_it(tmp_path):
    """At every number of pages that may be left: in the lock, the configuration, the record."""
    disk, page = tmp_path / "disk", resource.getpagesize()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * page}", "tmpfs", disk]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine refuses mounts: {mounted.stderr.strip()}")
    try:
        for left in range(4):
            for path in (disk / "fill", disk / "runs"):
                subprocess.run(["rm", "-rf", path], check=True)
            (disk / "fill").write_bytes(b"x" * (page * (4 - left)))
            try:
                with Store(disk / "runs").open(CONFIG) as run:
                    run.begin(note="x" * (5 * page))
                pytest.fail("a record larger than the disk fitted")
            except UserError as error:
                assert "no space is left there" in str(error) and "\n" not in str(error)
            assert not list(disk.rglob("*.tmp"))
            entered = list(disk.glob("runs/*/record.json"))
            assert entered or not (disk / "runs").exists(), "a run that could not be entered leaves nothing"
    finally:
        subprocess.run(["umount", disk], check=True)

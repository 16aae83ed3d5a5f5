"""Two machines on one store whose `flock` reaches only one of them: each process here is a machine of its own.

That `flock` lies is done by hand (it succeeds for everybody, or is refused), and by two mounts of one folder where FUSE
may be used: the kernel then keeps the locks of either mount apart, as it does those of two machines.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from rowsft.store import Store, claims
from rowsft.store.lock import RunLock, is_held
from rowsft.store.machine import here

CONFIG = {"seed": 1, "method": {"name": "lora"}}
BEAT, LEASE = 0.2, 2.0

# Arguments: the store, the machine's name (empty: this one), what flock does.
MACHINE = f"""
import fcntl, os, sys, time
from rowsft.store import Store, claims, files, lock
store, machine, flock = sys.argv[1:4]
claims.BEAT_SECONDS, claims.LEASE_SECONDS, claims._ASK_SECONDS = {BEAT}, {LEASE}, 0.05
if flock == "refused":
    def refuse(stream, how):
        raise OSError({errno.ENOLCK}, "No locks available")
    fcntl.flock = refuse
elif flock == "alone":
    fcntl.flock = lambda stream, how: None
if machine:
    claims.here = lambda folder: machine
    claims.name = lambda: machine
CONFIG = {CONFIG!r}
"""

HOLD = (
    MACHINE
    + """
with Store(store).open(CONFIG) as run:
    run.begin()
    print(run.id, flush=True)
    sys.stdin.readline()
    run.add_experiment("after")
    run._open.finish("done", metrics={})
"""
)

TRY = (
    MACHINE
    + """
from rowsft.errors import RunHeld
try:
    with Store(store).open(CONFIG) as run:
        run.begin().finish("done", metrics={})
        print("done")
except RunHeld as error:
    print("held:", error)
"""
)


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    """Starts a machine that works on the run, and stops it when the test is over."""
    with ExitStack() as stack:

        def begin(name, flock="alone", store=tmp_path):
            process = start(HOLD, store, name, flock)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert (run := process.stdout.readline().strip()), process.stderr.read()
            return process, run

        yield begin


def ended(process):
    out, err = process.communicate(timeout=120)
    return out, err


@pytest.mark.parametrize("flock", ["alone", "refused"])
def test_a_run_of_a_living_process_elsewhere_is_held_and_it_goes_on(tmp_path, holder, flock):
    process, run = holder("east", flock)
    out, err = ended(start(TRY, tmp_path, "west", flock))
    assert out.startswith(f"held: run {run} is being worked on by process {process.pid} on east; wait for it"), err
    assert "process" in err and "on east has not given it back" in err
    assert is_held(tmp_path / run) and Store(tmp_path).get(run).state == "running"
    ended(process)
    assert Store(tmp_path).get(run).state == "done" and not is_held(tmp_path / run)


@pytest.mark.parametrize("flock", ["alone", "refused"])
def test_a_run_whose_process_died_elsewhere_is_taken_over(tmp_path, holder, flock):
    process, run = holder("east", flock)
    process.kill()
    process.wait()
    out, err = ended(start(TRY, tmp_path, "west", flock))
    assert out == "done\n", err
    first, second = Store(tmp_path).get(run).attempts
    assert (first.state, second.state) == ("interrupted", "done")
    # Given back: nobody waits.
    out, err = ended(start(TRY, tmp_path, "east", flock))
    assert out == "done\n" and err == ""


def test_a_run_whose_process_died_on_this_machine_is_taken_at_once(tmp_path, holder):
    process, run = holder("", "real")
    assert is_held(tmp_path / run)
    process.kill()
    process.wait()
    assert not is_held(tmp_path / run)
    out, err = ended(start(TRY, tmp_path, "", "real"))
    assert out == "done\n" and err == ""


def test_where_flock_is_refused_this_machine_waits_like_any_other(tmp_path, holder):
    process, run = holder("", "refused")
    out, _ = ended(start(TRY, tmp_path, "", "refused"))
    assert out.startswith(f"held: run {run}")
    process.kill()
    process.wait()
    out, err = ended(start(TRY, tmp_path, "", "refused"))
    assert out == "done\n" and "has not given it back" in err


def test_who_stood_still_and_lost_the_run_writes_nothing_more(tmp_path, holder):
    process, run = holder("east")
    process.send_signal(signal.SIGSTOP)
    out, err = ended(start(TRY, tmp_path, "west", "alone"))
    assert out == "done\n", err
    before = (tmp_path / run / "record.json").read_bytes()
    process.send_signal(signal.SIGCONT)
    _, err = ended(process)
    assert process.returncode == 1 and f"RunHeld: run {run}: this process said nothing for" in err
    assert (tmp_path / run / "record.json").read_bytes() == before


RACE = (
    MACHINE
    + """
from pathlib import Path
from rowsft.errors import RunHeld
folder = Path(store)
print(flush=True)
sys.stdin.readline()
won = 0
while won < 12:
    try:
        held = lock.RunLock(folder)
    except RunHeld:
        continue
    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
    time.sleep(0.002)
    os.unlink(folder / "inside")
    won += 1
    held.release()
    time.sleep(0.001)
"""
)


def test_of_many_machines_one_at_a_time_has_the_run(tmp_path):
    dead = tmp_path / ".claim-4"
    dead.write_text("1 gone gone\n")
    processes = [start(RACE, tmp_path, f"machine{number}", "alone") for number in range(4)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [ended(process) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [err[-500:] for _, err in ends]
    (last,) = tmp_path.glob(".claim-*")
    assert int(last.name.removeprefix(".claim-")) >= 4 + 4 * 12 and last.read_bytes() == b"released\n"


def test_the_owner_of_a_claim_says_that_it_lives(tmp_path):
    lock = RunLock(tmp_path)
    before = (tmp_path / ".claim-1").stat().st_mtime_ns
    for held in list(claims._claims):
        held.beat()
    assert (tmp_path / ".claim-1").stat().st_mtime_ns > before
    lock.check()
    lock.release()
    assert (tmp_path / ".claim-1").read_bytes() == b"released\n"


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(claims, "_ASK_SECONDS", 0.05)


@pytest.mark.parametrize("followed", [1, 2])
def test_who_has_seen_a_dead_owner_too_late_does_not_follow_it_as_well(tmp_path, short_lease, monkeypatch, followed):
    """Two find one dead owner; before the second takes the next number, one or two others have had the run."""
    (tmp_path / ".claim-1").write_text("1 gone gone\n")
    late = iter([claims._highest(tmp_path)])
    for _ in range(followed):
        owner = claims.Claim(tmp_path, True, print)
        if followed == 2 and owner.number == 2:
            owner.release()
    real = claims._highest
    monkeypatch.setattr(claims, "_highest", lambda folder: next(late, None) or real(folder))
    # The claims of this test are this process's: only that flock was not asked keeps them apart.
    first = claims._outlives
    monkeypatch.setattr(claims, "_outlives", lambda folder, seen, warn: seen.number == 1 or first(folder, seen, warn))
    with pytest.raises(claims.Held):
        claims.Claim(tmp_path, False, lambda line: owner.beat())
    assert owner.holds() and [path.name for path in tmp_path.glob(".claim-*")] == [f".claim-{1 + followed}"]
    owner.release()


@pytest.mark.parametrize("seconds", [-86400 * 400, 86400 * 400])
def test_a_clock_that_is_a_year_off_takes_no_living_owners_run_and_keeps_no_dead_ones(tmp_path, short_lease, seconds):
    """Whether an owner lives is told by the change of its file's time, whatever that time says."""
    claim, then = tmp_path / ".claim-1", time.time() + seconds
    claim.write_text("1 elsewhere east\n")
    os.utime(claim, (then, then))
    with pytest.raises(claims.Held, match="process 1 on east"):
        claims.Claim(tmp_path, True, lambda line: os.utime(claim, (then + 1, then + 1)))
    claims.Claim(tmp_path, True, print).release()
    assert [path.name for path in tmp_path.glob(".claim-*")] == [".claim-2"]


@pytest.mark.parametrize("text", [b"", b"\xff\x00", b"1", b"1 2 3 4 5 6", b"x" * 5000])
def test_a_damaged_claim_is_one_of_somebody_unknown(tmp_path, short_lease, text):
    (tmp_path / ".claim-7").write_bytes(text)
    RunLock(tmp_path).release()
    assert [path.name for path in tmp_path.glob(".claim-*")] == [".claim-8"]


def test_names_that_are_no_numbers_are_left_alone(tmp_path):
    for name in (".claim-x", ".claim-", ".claim-²", ".claim-1.orig"):
        (tmp_path / name).write_text("?")
    RunLock(tmp_path).release()
    assert (tmp_path / ".claim-1").exists() and len(list(tmp_path.glob(".claim-*"))) == 5


def test_a_forked_child_neither_keeps_nor_gives_back_its_parents_run(tmp_path):
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    lock.check()
    assert (tmp_path / ".claim-1").read_bytes() != b"released\n"
    lock.release()


@pytest.fixture
def two_mounts(tmp_path):
    """One folder mounted twice."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed (Debian: apt-get install bindfs)")
    folder, mounts = tmp_path / "folder", [tmp_path / "east", tmp_path / "west"]
    folder.mkdir()
    mounted = []
    try:
        for mount in mounts:
            mount.mkdir()
            done = subprocess.run(["bindfs", folder, mount], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"FUSE cannot be used here: {done.stderr.strip()[:200]}")
            mounted.append(mount)
        yield mounts
    finally:
        for mount in mounted:
            subprocess.run(["umount", mount], check=False)


def test_two_mounts_of_one_folder_do_not_see_each_others_flock_and_keep_apart_all_the_same(two_mounts, holder):
    east, west = two_mounts
    assert here(east) != here(west)
    process, run = holder("", "real", east)
    out, err = ended(start(TRY, west, "", "real"))
    assert out.startswith(f"held: run {run} is being worked on by process {process.pid} on "), err
    assert Store(west).get(run).state == "running"
    process.kill()
    process.wait()
    out, err = ended(start(TRY, west, "", "real"))
    assert out == "done\n", err
    assert [attempt.state for attempt in Store(east).get(run).attempts] == ["interrupted", "done"]

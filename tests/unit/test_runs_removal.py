"""`rowsft runs rm`: what goes, what is asked first, and what is refused."""

import shutil
import signal
import subprocess
import sys

import pytest
from report_factory import fail, finish, outcomes

from rowsft.cli.main import main
from rowsft.errors import RunHeld, UserError
from rowsft.store import Store, removal


@pytest.fixture
def store(tmp_path):
    """Four runs of LoRA and one of full fine-tuning that failed."""
    store = Store(tmp_path / "runs")
    for seed in (1, 2, 3, 4):
        finish(store, outcomes(50), method="lora", seed=seed, task="sentiment")
    fail(store, "failed", {"type": "E", "message": "m", "traceback": "t", "phase": "train"}, method="full")
    return store


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ids(store):
    return {record.id for record in Store(store.root).runs()}


@pytest.fixture
def rm(store, monkeypatch, capsys):
    """The command, with what is typed where it asks; None: there is no terminal."""

    def call(*arguments, typed=None):
        def answer(question):
            print(question)
            if typed == "":
                raise EOFError
            return typed

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed is not None, raising=False)
        with pytest.raises(SystemExit) as ended:
            main(["runs", "rm", "--store", str(store.root), *arguments])
        return ended.value.code, *capsys.readouterr()

    return call


def test_named_runs_go_whole_and_the_others_stay_as_they_were(store, rm):
    one, two, *rest = sorted(ids(store))
    kept = {name: contents(store.root / name) for name in rest}
    code, out, _ = rm(one, two[:10], one, "--yes")
    assert code == 0 and [line.split()[2] for line in out.splitlines()] == [one, two]
    assert {path.name for path in store.root.iterdir()} == set(rest)
    assert {name: contents(store.root / name) for name in rest} == kept


def test_conditions_choose_among_all_runs_or_among_the_named_ones(store, rm):
    records = {record.config["seed"]: record.id for record in store.runs() if record.config["method"]["name"] == "lora"}
    assert rm(records[1], records[2], "--where", "seed>=2", "--yes")[0] == 0
    assert ids(store) >= {records[1], records[3], records[4]} and records[2] not in ids(store)
    assert rm("--where", "state=failed", "--yes")[0] == 0
    assert ids(store) == {records[1], records[3], records[4]}
    code, out, _ = rm("--where", "method=dora", "--yes")
    assert (code, out) == (0, "no run is meant; nothing was removed\n")


def test_it_asks_first_with_the_runs_and_their_sizes(store, rm):
    (failed,) = (record for record in store.runs() if record.state == "failed")
    (failed.folder / "attempt-1" / "big").write_bytes(b"x" * 3 * 2**20)
    before = contents(store.root)
    for typed in ("n", "", "maybe", "no"):
        code, out, _ = rm("--where", "state=failed", typed=typed)
        assert code == 0 and contents(store.root) == before
        assert "remove 1 run (3.0 MiB)? [y/N]" in out and out.endswith("nothing was removed\n")
        assert failed.id in out and "failed" in out
    assert rm(failed.id, typed="Y")[0] == 0 and failed.id not in ids(store)


def test_the_size_is_that_of_the_files_and_not_of_what_links_lead_to(store, tmp_path):
    record = store.runs()[0]
    expected = sum(path.stat().st_size for path in record.folder.rglob("*") if path.is_file())
    assert removal.size_bytes(record) == expected > 0
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    (record.folder / "link").symlink_to(tmp_path / "large")
    assert removal.size_bytes(record) - expected == len(str(tmp_path / "large"))
    assert removal.remove(record) and (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no run is named"),
        (["--yes"], "no run is named"),
        (["--where", "", "--yes"], "expected KEY=VALUE"),
        (["--where", " ", "--yes"], "expected KEY=VALUE"),
        (["--where", "sed=1", "--yes"], "no run has the key sed"),
        (["zzz", "--yes"], "run 'zzz': is not in it"),
        (["", "--yes"], "run '': matches"),
        (["--where", "seed=1"], "nobody can be asked here; add --yes"),
    ],
)
def test_what_is_not_clearly_meant_removes_nothing(store, rm, arguments, said):
    before = contents(store.root)
    code, _, err = rm(*arguments)
    assert code == 2 and said in err and err.count("\n") == 1 and contents(store.root) == before


def test_options_of_the_list_before_the_name_are_refused(store, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--store", str(store.root), "--where", "seed=1", "rm", *sorted(ids(store)), "--yes"])
    assert ended.value.code == 2 and "give options after its name" in capsys.readouterr().err and len(ids(store)) == 5


HOLD = """
import sys
from rowsft.store import Store
from rowsft.store.folder import RunFolder
from pathlib import Path
with RunFolder(Path(sys.argv[1])) as run:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_runs_that_a_living_process_holds_keep_all_runs_of_the_command(store, rm):
    held = sorted(ids(store))[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root / held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        before = contents(store.root)
        code, _, err = rm(*sorted(ids(store)), "--yes")
        assert code == 3 and f"run {held}: a process works on it" in err and contents(store.root) == before
        # One that was taken after the look keeps its run, too.
        with pytest.raises(RunHeld):
            removal.remove(store.get(held))
        assert set(contents(store.root)) == set(before)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert rm(held, "--yes")[0] == 0 and held not in ids(store)


def test_a_run_that_cannot_be_renamed_stays_whole(store, monkeypatch):
    record = store.runs()[0]

    def of_the_run():
        return {path: content for path, content in contents(record.folder).items() if path.name[:7] != ".claim-"}

    before = of_the_run()

    def refused(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refused)
    with pytest.raises(UserError, match="access is refused"):
        removal.remove(record)
    assert of_the_run() == before and store.get(record.id).state == record.state


def test_what_could_not_be_deleted_is_no_run_and_goes_later(store, rm, monkeypatch):
    name = sorted(ids(store))[0]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        code, _, err = rm(name, "--yes")
    assert code == 0 and "not all of it could be deleted" in err and removal.ASIDE in err
    assert list((store.root / removal.ASIDE).iterdir()) and name not in ids(store)
    assert name not in {record.id for record in store.runs()}
    with pytest.raises(UserError, match="is not in it"):
        store.get(name)
    # Whoever opens the store next clears up.
    fail(store, "failed", None, method="dora")
    assert not (store.root / removal.ASIDE).exists()


def test_a_removed_run_is_run_anew(store, rm):
    record = next(record for record in store.runs() if record.config["seed"] == 2)
    assert rm(record.id, "--yes")[0] == 0
    again = finish(store, outcomes(50), method="lora", seed=2, task="sentiment")
    assert again == record.id and len(store.get(again).attempts) == 1


def test_a_link_to_a_run_is_not_followed(store, tmp_path, rm):
    name = sorted(ids(store))[0]
    (store.root / name).rename(tmp_path / name)
    (store.root / name).symlink_to(tmp_path / name)
    code, _, err = rm(name, "--yes")
    assert code == 2 and "is a link" in err and (tmp_path / name / "record.json").exists()

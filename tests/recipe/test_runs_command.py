"""`rowsft runs` on runs that the command line made: their logs, and what can be asked of them."""

import json

from rowsft.store import Store


def cheap(workshop, store):
    rest = [text for text in workshop.overrides("bert") if not text.startswith(("store=", "budget.", "trainer.memory"))]
    return [*rest, f"store={store}", "trainer.memory_probe_steps=0", "trainer.steps=3"]


def test_a_run_and_the_jobs_of_a_sweep_keep_what_they_say(workshop, tmp_path):
    store = tmp_path / "runs"
    run = workshop.rowsft("run", *cheap(workshop, store), "method=head")
    assert run.returncode == 0, run.stderr
    (record,) = Store(store).runs()
    *said, _ = run.stdout.splitlines()
    log = (record.folder / "attempt-1" / "log.txt").read_text().splitlines()
    assert [line for line in log if line in said] == said and log[-1] == "done"
    assert any("training for 3 steps of 4" in line for line in log)
    assert set(record.result.files) == {"predictions", "curve", "adapter"}, "a log is no file of the record"

    # Two side by side print nothing; one of them fails.
    sweep = [
        "sweep",
        *cheap(workshop, store),
        "method=full",
        "trainer.learning_rate=0.001,1e30",
        "hydra.launcher.jobs=2",
    ]
    done = workshop.rowsft(*sweep)
    assert done.returncode == 1, done.stderr

    def runs(*words):
        return workshop.rowsft("runs", *words, "--store", str(store))

    (failed,) = json.loads(runs("--where", "method=full state=failed", "--json").stdout)
    (full,) = json.loads(runs("--where", "method=full learning_rate<1", "--sort", "-value", "--json").stdout)
    tail = runs("tail", failed["id"][:8], "-n", "3")
    assert tail.returncode == 0 and tail.stdout.splitlines()[-1] == "failed"
    assert "rowsft.runner.trainer.TrainingDiverged: loss is " in tail.stdout
    assert "Traceback (most recent call last):" in runs("tail", failed["id"], "-n", "99", "--no-follow").stdout
    explained = json.loads(runs("explain", full["id"], failed["id"], "--json").stdout)
    assert explained["differs"] == {"trainer.learning_rate": {"a": 0.001, "b": 1e30}}
    again = workshop.rowsft("run", *cheap(workshop, store), "method=head")
    assert "done already" in again.stderr and not (record.folder / "attempt-2").exists()

    assert runs("rm", "--where", "state=failed").returncode == 2, "nobody can be asked"
    assert runs("rm", "--where", "state=failed", "--yes").returncode == 0
    assert {run["id"] for run in json.loads(runs("--json").stdout)} == {record.id, full["id"]}

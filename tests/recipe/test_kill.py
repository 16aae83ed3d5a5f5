"""The short form of `make kill-test`: sweeps and writers killed at random moments end with the undisturbed table."""

import os
import re
import signal

import pytest
from kill import Damage, KillTest, check, jobs, table

from rowsft.store import Store

pytestmark = pytest.mark.whole


def test_a_killed_sweep_ends_with_the_table_of_an_undisturbed_one(workshop, tmp_path):
    test = KillTest(tmp_path, jobs(workshop, 1), seed=1)
    line = test.run(lambda share: test.for_kills(6 * share))
    assert re.match(r"\d+ kills \(.*same table$", line) and test.counts["writer"] >= 2


def test_a_sweep_killed_at_its_checkpoints_goes_on_to_the_same_table(workshop, tmp_path):
    test = KillTest(tmp_path, jobs(workshop, 1), seed=1)
    expected = test.undisturbed("quiet")
    for _ in range(2):
        process = test.sweep("killed")
        test.await_a_checkpoint(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert test.undisturbed("killed") == expected
    (trained,) = [record for record in Store(tmp_path / "killed").runs() if len(record.attempts) > 1]
    assert [attempt.state for attempt in trained.attempts] == ["interrupted", "interrupted", "done"]
    assert trained.result.resumed.times == 2 and trained.result.steps == 300


def test_the_kill_test_sees_damage(tmp_path):
    """A record cut short, a file that changed, a result that is gone, a number that differs."""
    with Store(tmp_path).open({"seed": 1, "method": {"name": "mine"}}) as run:
        attempt = run.begin()
        attempt.write_predictions([{"id": 1}])
        attempt.finish("done", metrics={"test": {"accuracy": 0.5}})
    done: set[str] = set()
    check(tmp_path, done)
    assert done == {run.id}
    before = table(tmp_path)
    path = run.path / "record.json"
    whole = path.read_text()
    path.write_text(whole.replace("0.5", "0.25"))
    assert table(tmp_path) != before
    path.write_text(whole)
    predictions = run.path / "attempt-1" / "predictions.jsonl"
    predictions.write_text("")
    with pytest.raises(Damage, match="not the file"):
        check(tmp_path, done)
    path.unlink()
    with pytest.raises(Damage, match="gone"):
        check(tmp_path, done)

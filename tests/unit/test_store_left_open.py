"""An attempt that its process leaves open is closed by the one that knows why it ended."""

import pytest

from rowsft.record import Error
from rowsft.store import Store

CONFIG = {"method": {"name": "m"}, "model": {"name": "b"}, "task": {"name": "t"}, "seed": 1}


def test_an_attempt_that_is_left_open_is_closed_by_another(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.open(CONFIG) as run:
        run.is_left = lambda: True
        run.begin().update(steps=3)
        raise KeyboardInterrupt("stopped by SIGTERM")
    why = Error(type="Killed", message="rank 1 killed by signal 9")
    folder = store.close_attempt(run.id, why, "failed")
    latest = store.get(run.id).latest
    assert folder == run.path / "attempt-1"
    assert (latest.state, latest.error.message, latest.steps) == ("failed", why.message, 3) and latest.ended_at
    # Once only: what is recorded stays.
    assert store.close_attempt(run.id, Error(type="Killed", message="again"), "oom") is None
    assert store.get(run.id).latest.state == "failed"

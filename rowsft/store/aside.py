"""Work on a finished run that becomes no attempt: what it records is kept in memory, and its files go when it ends."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rowsft.record import Attempt
from rowsft.store.attempt import OpenAttempt, checked
from rowsft.store.files import explained
from rowsft.store.folder import RunFolder

_NAME = ".aside.tmp"


class AsideAttempt(OpenAttempt):
    """An attempt that never enters the record."""

    def __init__(self, run: RunFolder):
        super().__init__(run, number=0)
        self.path = run.path / _NAME
        self._fields = Attempt.of(attempt=1, state="running")

    @property
    def fields(self) -> Attempt:
        """What is known so far."""
        return self._fields

    def update(self, **fields: Any) -> None:
        """See `OpenAttempt.update`."""
        self._fields = checked(self._merged(fields))


@contextmanager
def aside(run: RunFolder) -> Iterator[AsideAttempt]:
    """Yield such an attempt. What a killed process leaves of it goes when the run is opened again."""
    attempt = AsideAttempt(run)
    with explained(run.path):
        attempt.path.mkdir()
    try:
        yield attempt
    finally:
        shutil.rmtree(attempt.path, ignore_errors=True)

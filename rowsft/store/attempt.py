"""One try at a run: its fields are on disk after every call, its files whole or absent."""

import errno
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rowsft.output import redact
from rowsft.record import Attempt, Error, State, plain, read_attempt, unknown_keys
from rowsft.store import files, progress, run_log
from rowsft.store.record import FINAL_STATES, now
from rowsft.store.run_log import RunLog

if TYPE_CHECKING:
    from rowsft.store.folder import RunFolder

# What a RuntimeError for want of memory says: the system's and torch's allocator on a CPU, CUDA, and its library.
_NO_MEMORY = (
    "Cannot allocate memory",
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class OpenAttempt:
    """The attempt that this process works on: what it records is on disk after every call."""

    def __init__(self, run: "RunFolder", number: int):
        self._run = run
        self._started = time.monotonic()
        self.number = number
        self.path: Path = run.path / f"attempt-{number}"
        self._log: RunLog | None = None

    def keep_log(self, log: RunLog) -> None:
        """Keep what the run prints as log.txt until the attempt ends. It is not entered under `files`: it grows."""
        self._log = log
        log.begin(self.path / run_log.NAME)

    def close_log(self, last: str | None = None) -> None:
        """End the log, where there is one, after a last text."""
        log, self._log = self._log, None
        if log is not None:
            log.close(last)

    @property
    def fields(self) -> Attempt:
        """What is recorded so far."""
        return self._run.attempt(self.number)

    def update(self, **fields: Any) -> None:
        """Set fields of `rowsft.record.Attempt`: parts, or mappings, which are merged into what stands there.

        A nan or infinity is stored as null and its key listed under `non_finite`. Raises ValueError for a key that a
        record does not have and for a value that could not be read back.
        """
        self._run.put(_checked(self._merged(fields)))

    def _merged(self, fields: dict[str, Any]) -> dict[str, Any]:
        given, not_finite = files.jsonable(redact.config(plain(fields)))
        merged = plain(self.fields)
        _merge(merged, given)
        if not_finite:
            merged["non_finite"] = sorted({*(merged.get("non_finite") or []), *not_finite})
        return merged

    def write_predictions(self, rows: list[dict]) -> None:
        """Keep one JSON object an example as predictions.jsonl, entered with its sha256 under `files`."""
        self._enter("predictions", "predictions.jsonl", files.write_jsonl(self.path / "predictions.jsonl", rows))

    def write_curve(self, rows: list[dict]) -> None:
        """Keep one line a logged step as curve.csv, entered with its sha256 under `files`."""
        self._enter("curve", "curve.csv", files.write_csv(self.path / "curve.csv", rows))

    def write_memory(self, rows: list[dict]) -> None:
        """Keep the memory of one training step over its events as memory.csv, entered with its sha256 under `files`."""
        self._enter("memory", "memory.csv", files.write_csv(self.path / "memory.csv", rows))

    def write_folder(self, name: str, fill: Callable[[Path], object]) -> None:
        """Let `fill` write a folder `<name>/` (an adapter), entered with the sha256 of its contents under `files`.

        The folder gets its name only when `fill` has come through.
        """
        temporary = self.path / f".{name}.tmp"
        with files.explained(self.path):
            temporary.mkdir()
        try:
            fill(temporary)
            redact.folder(temporary)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            # safetensors reports a full disk as an error of its own.
            if "No space left" in str(error):
                with files.explained(self.path):
                    raise OSError(errno.ENOSPC, "No space left on device") from error
            raise
        with files.explained(self.path):
            temporary.rename(self.path / name)
        self._enter(name, name, files.sha256(self.path / name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for the block. What a killed process leaves of it goes when the run is opened again."""
        folder = self.path / ".scratch.tmp"
        with files.explained(self.path):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, state: State, error: Error | None = None, **fields: Any) -> None:
        """Close the attempt as done, failed, oom or interrupted. Once only.

        `fields` are those of `update`; `seconds.total` is the attempt's wall-clock time unless given.
        """
        if state not in FINAL_STATES:
            raise ValueError(f"state {state!r}: expected one of {', '.join(FINAL_STATES)}")
        if self._run._open is not self:
            raise RuntimeError(f"run {self._run.id}: attempt {self.number} is already finished")
        merged = self._merged(fields)
        merged |= {"state": state, "ended_at": now()}
        merged["error"] = error and {key: text and redact.text(text) for key, text in plain(error).items()}
        merged["seconds"] = {"total": time.monotonic() - self._started, **(merged.get("seconds") or {})}
        self._run._open = None
        progress.remove(self.path)
        # Before the record says that it is over: whoever follows the log then has all of it.
        cause = (merged["error"] or {}).get("traceback")
        self.close_log(f"{cause.rstrip()}\n{state}" if cause else state)
        self._run.put(_checked(merged), state)

    def _enter(self, name: str, relative: str, digest: str) -> None:
        self.update(files={name: {"path": f"{self.path.name}/{relative}", "sha256": digest}})


def _checked(fields: dict[str, Any]) -> Attempt:
    """Return the attempt of these fields. Raises ValueError for what a record does not have."""
    attempt = read_attempt(fields)
    if unknown := list(unknown_keys(attempt)):
        raise ValueError(f"a record has no {', '.join(unknown)}; rowsft/record/parts.py has the names that it has")
    return attempt


def state_of(error: BaseException | None) -> State:
    """The state an attempt ends in when `error` ends it: oom, interrupted or failed."""
    if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    # torch's own out-of-memory class by name: the store does not import torch.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "oom" if out_of_memory or any(words in str(error) for words in _NO_MEMORY) else "failed"


def error_fields(error: BaseException, phase: str | None = None) -> Error:
    """Return an exception as an attempt keeps it; `phase` is where it came up."""
    return Error(
        type=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        phase=phase,
    )


def _merge(into: dict, new: dict) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value

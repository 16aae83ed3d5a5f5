"""Runs as a pandas DataFrame, for analyses of one's own: `rowsft.load_runs`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rowsft.report.flat import run_rows
from rowsft.store import STATES, Store

if TYPE_CHECKING:
    from pandas import DataFrame

_TIMES = ("started_at", "ended_at")


def load_runs(store: str | Path = "runs", experiment: str | None = None) -> "DataFrame":
    """Return one row a run of the store (of one experiment): runs.csv of a report as a DataFrame.

    A column is named as the path of its value in record.json, with its unit: `metrics.test.accuracy`,
    `memory.train.peak_allocated_bytes`, `config.method.name`; `id`, `state`, `experiments` and `attempts` say what the
    run is. Values are those of the latest finished attempt, or of the latest one where none is finished. What was not
    measured is missing. Times are in UTC, states an ordered category, numbers integers only where all are there.

    Unreadable records are skipped with a warning. Raises UserError where the folder cannot be read.
    """
    import pandas

    frame = pandas.DataFrame(run_rows(Store(store).runs(experiment)))
    if frame.empty:
        return pandas.DataFrame(columns=["id", "state", "experiments", "attempts"])
    frame = frame.convert_dtypes(convert_integer=False, convert_floating=False)
    frame["state"] = pandas.Categorical(frame["state"], categories=STATES, ordered=True)
    for name in _TIMES:
        if name in frame:
            frame[name] = pandas.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
    return frame

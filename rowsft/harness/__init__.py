"""Finished runs evaluated by lm-evaluation-harness (extra `eval`), in this process, on the adapted model itself.

    for outcome in evaluate_runs(["3f2a", "9c01"], "runs", Settings(["boolq", "piqa"], batch_size=8)):
        outcome.results[0].metrics["acc,none"]

May import methods, models, config, tasks (heads), record and store. Must not know a method by name; opens lm_eval only
when it is asked to evaluate.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rowsft.config.plugins import check_extra
from rowsft.harness.adapted import Loader
from rowsft.harness.random_states import kept_random_states
from rowsft.harness.settings import Settings
from rowsft.output import escape
from rowsft.record import File, HarnessResult
from rowsft.store import Record, RunFolder, write_jsonl
from rowsft.store.finding import finished_run

if TYPE_CHECKING:
    from rowsft.harness.measuring import Evaluated

__all__ = ["Outcome", "Settings", "evaluate_runs"]


@dataclass(frozen=True)
class Outcome:
    """What was entered in a run's record."""

    record: Record
    results: list[HarnessResult]


def evaluate_runs(
    runs: Sequence[str],
    store: str | Path,
    settings: Settings,
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Outcome]:
    """Evaluate finished runs one after the other, enter the results in their records, and yield them.

    runs: ids (or their beginnings) or folders; those of one base model share it, loaded once. device: None takes a
    GPU where there is one. Results are added to those that a record has. Raises UserError for a run that is unknown,
    unfinished or no causal language model, for an unknown task, for an adapter that changes no logit of its base model,
    and where merged and unmerged weights do not agree; what was recorded by then stays.
    """
    check_extra("lm_eval", "eval", "rowsft eval --lm-eval")
    from rowsft.harness.measuring import Tasks

    records = list({record.folder: record for record in (finished_run(run, store) for run in runs)}.values())
    loader = Loader(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for record in records:
        loader.check(record)
    tasks = Tasks(settings)
    # Runs of one base model follow each other, so that no more than one is held at a time.
    order = {key: place for place, key in enumerate(dict.fromkeys(map(loader.key, records)))}
    for record in sorted(records, key=lambda record: order[loader.key(record)]):
        say(f"evaluating run {record.id} on {', '.join(settings.tasks)}")
        # Held until the results are written: nobody may train the run anew meanwhile.
        with kept_random_states(), RunFolder(record.folder) as folder, loader.adapted(record) as adapted:
            results = _enter(folder, record, tasks.evaluated(adapted))
        yield Outcome(record, results)


def _enter(folder: RunFolder, record: Record, evaluated: "list[Evaluated]") -> list[HarnessResult]:
    """Add the results to the attempt whose adapter they are of, their examples in files beside it; return them."""
    assert record.result is not None, "the caller has looked"
    attempt = folder.attempt(record.result.attempt)
    place = folder.path / f"attempt-{attempt.attempt}"
    # Higher than that of any file there, one without an entry too, which a killed evaluation has left.
    found = (re.match(r"lm_eval-(\d{1,9})-", path.name) for path in place.glob("lm_eval-*.jsonl"))
    number = max((int(name[1]) for name in found if name), default=0) + 1
    results = []
    for result, samples in evaluated:
        if samples:
            path = place / f"lm_eval-{number}-{escape.file_name(result.task)}.jsonl"
            digest = write_jsonl(path, samples)
            result = result.changed(samples=File.of(path=f"{place.name}/{path.name}", sha256=digest))
        results.append(result)
    folder.put(attempt.changed(lm_eval=[*(attempt.lm_eval or []), *results]))
    return results

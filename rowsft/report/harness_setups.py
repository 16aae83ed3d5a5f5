"""Which evaluations by lm-evaluation-harness may be compared, and what they are called.

Two numbers of a task compare where its version, documents, prompts, shots and limit are the same. In a report,
evaluations that differ in these have names of their own: none is averaged with another or held against it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rowsft.record import Attempt, HarnessResult
from rowsft.store import Record

#: What may tell evaluations of one task apart, in the order in which it is told. Of hashes so many digits are shown.
_APART = ("version", "shots", "limit", "prompts", "documents")
_DIGITS = 8


@dataclass(frozen=True)
class Setup:
    """What evaluations have in common whose numbers may be compared."""

    task: str
    version: str | None
    shots: int | None
    limit: int | None
    prompts: str | None
    documents: str | None


def setup_of(result: HarnessResult) -> Setup:
    """Return the setup of one evaluation."""
    return Setup(
        task=result.task,
        version=result.task_version,
        shots=result.shots,
        limit=result.limit,
        prompts=result.prompts_sha256,
        documents=result.documents_sha256,
    )


def newest(attempt: Attempt | None) -> dict[Setup, HarnessResult]:
    """Return an attempt's results: of several of one setup the newest."""
    results = attempt.lm_eval if attempt is not None else None
    return {setup_of(result): result for result in results or []}


def main_metric(result: HarnessResult) -> str | None:
    """Return the key of a result's main metric. Older records do not name it: there it is the first one."""
    return result.main_metric or next(iter(metrics(result)), None)


def metrics(result: HarnessResult) -> dict[str, float | None]:
    """Return a result's metrics under the harness's keys, without their standard errors."""
    return {key: value for key, value in result.metrics.items() if not key.partition(",")[0].endswith("_stderr")}


def metric_name(key: str) -> str:
    """Return the metric of a key of the harness, with the filter where there is one: acc of acc,none."""
    return key.removesuffix(",none")


class Names:
    """What the setups of some runs are called: by their task, and by what tells them from the others of that task."""

    def __init__(self, records: Iterable[Record]):
        setups = dict.fromkeys(one for record in records for one in newest(record.result))
        of_task: dict[str, list[Setup]] = {}
        for one in setups:
            of_task.setdefault(one.task, []).append(one)
        self._own = {one: _own_words(one, of_task[one.task]) for one in setups}

    def title(self, setup: Setup, metric: str) -> str:
        """Return a column's title: boolq acc; gsm8k exact_match,strict-match, 5-shot, limit 100."""
        return ", ".join([f"{setup.task} {metric_name(metric)}", *self._own[setup]])

    def key(self, setup: Setup, metric: str) -> str:
        """Return its name in a CSV file: lm_eval.boolq.acc."""
        own = (words.replace(" ", "_") for words in self._own[setup])
        return ".".join(["lm_eval", setup.task, *own, metric_name(metric)])


def differing(setups: Iterable[Setup]) -> list[str]:
    """Return what tells these apart. A limit takes the part of the prompts and documents that differ because of it."""
    setups = list(setups)
    told = {name for one in setups for name in _apart(one, setups)}
    return [name for name in _APART if name in told]


def _apart(setup: Setup, others: list[Setup]) -> list[str]:
    """Return what tells a setup from others, each after those before it have told what they can."""
    names = []
    for name in _APART:
        alike = [one for one in others if getattr(one, name) == getattr(setup, name)]
        if len(alike) < len(others):
            names.append(name)
            others = alike
    return names


def _own_words(setup: Setup, all_of_task: list[Setup]) -> list[str]:
    """Shots and a limit are always told: such a number is read otherwise."""
    apart = _apart(setup, all_of_task)
    told = [f"{setup.shots}-shot"] if setup.shots or "shots" in apart else []
    told += [f"limit {setup.limit}"] if setup.limit is not None else []
    told += [f"version {setup.version}"] if "version" in apart else []
    hashes = {"prompts": setup.prompts, "documents": setup.documents}
    return told + [f"{name} {(value or 'unknown')[:_DIGITS]}" for name, value in hashes.items() if name in apart]

"""Several multiple-choice tasks trained together, each evaluated on its own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import numpy as np

from rowsft.errors import UserError, shortened
from rowsft.store.token_cache import TokenCache
from rowsft.tasks import Evaluation, Progress, choice_settings, held_out
from rowsft.tasks.answer_score import AnswerScore
from rowsft.tasks.choice import ChoiceTask
from rowsft.tasks.choice_settings import FIELDS
from rowsft.tasks.continuing import ContinuingTask, new_tokens
from rowsft.tasks.token_caching import settings_of

#: What may be tuned and reported by: means over the tasks.
METRICS = ("accuracy_mean", "accuracy_generated")


class Mix(ContinuingTask):
    """Train, validation and test are those of all `tasks` together; an example's `task` is the name of its own.

    `accuracy_<name>` is the primary metric of each task, `accuracy_mean` their mean, in which every task counts alike
    however many examples it has. form, max_new_tokens: those of every task (see MultipleChoice); what is written gives
    `accuracy_generated_<name>` and their mean `accuracy_generated`. primary_metric: one of METRICS.
    """

    higher_is_better = True
    evaluates_as_trained = False
    shares_prompts = True

    def __init__(
        self,
        name: str,
        max_length: int,
        tasks: Mapping[str, Any],
        limits: Mapping[str, int | None] | None = None,
        primary_metric: str = METRICS[0],
        form: str = FIELDS,
        max_new_tokens: int | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.max_new_tokens = None if max_new_tokens is None else new_tokens(max_new_tokens, max_length)
        self.form = choice_settings.form(form)
        self.primary_metric = choice_settings.metric(primary_metric, METRICS, None, max_new_tokens)
        self.tasks: dict[str, ChoiceTask] = {str(key): task for key, task in tasks.items() if task is not None}
        if not self.tasks:
            raise UserError("task.tasks: names no task; expected one or more")
        for key, task in self.tasks.items():
            _check(f"task.tasks.{shortened(key)}", task, self)

    def _read(self) -> dict[str, list[dict]]:
        read = {name: _splits_of(name, task) for name, task in self.tasks.items()}
        return {
            split: [
                {**example, "id": f"{name}/{example['id']}", "task": name}
                for name, splits in read.items()
                for example in splits[split]
            ]
            for split in next(iter(read.values()))
        }

    def splits(self) -> dict[str, list[dict]]:
        """As every task's. Raises UserError where limits, or dropping long examples, leave a task without any."""
        splits = super().splits()
        for split, examples in splits.items():
            for name in sorted(self.tasks.keys() - {example["task"] for example in examples}):
                if self.long_examples == "drop" and self._long.get(split):
                    raise UserError(
                        f"task.long_examples=drop: all {split} examples of {name} have more than {self._limit} tokens; "
                        f"raise it, or leave the task out (task.tasks.{name}=null)"
                    )
                raise UserError(
                    f"task.limits.{split}={self.limits.get(split)}: leaves no example of {name}; raise it, or limit "
                    f"each task by itself (task.tasks.{name}.limits.{split})"
                )
        return splits

    def _facts(self) -> dict[str, Any]:
        facts = {name: task.about() for name, task in self.tasks.items()}
        return {
            **{key: _listed(facts, key) for key in ("source", "revision", "licence", "caveat")},
            "sha256": {f"{name}.{key}": sha for name, own in facts.items() for key, sha in own["sha256"].items()},
            "counts": {name: {**own["counts"], "sizes": own["sizes"]} for name, own in facts.items()},
            "warnings": [f"{name}: {line}" for name, own in facts.items() for line in own["warnings"]],
        }

    def data_at_hand(self) -> bool:
        """Whether the files of every task are here."""
        return all(task.data_at_hand() for task in self.tasks.values())

    def encoding_settings(self) -> dict[str, Any] | None:
        """Those of every task; None where one of them has nothing kept."""
        settings = {name: settings_of(task) for name, task in self.tasks.items()}
        return None if None in settings.values() else settings

    def keep_tokens(self, cache: TokenCache) -> None:
        """As every task's."""
        super().keep_tokens(cache)
        for task in self.tasks.values():
            task.keep_tokens(cache)

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """Each example as its own task encodes it."""
        return self._by_task(examples, lambda task, own: task.encode(own, tokenizer))

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """As every example's own task says."""
        return self._by_task(examples, lambda task, own: task.too_long(own, tokenizer))

    def limit_lengths(self, tokenizer, names: Iterable[str], /) -> None:
        """As every task's. Raises UserError where dropping leaves a task without examples."""
        super().limit_lengths(tokenizer, names)
        self.splits()

    def with_max_length(self, tokens: int) -> Self:
        """A copy of the mix, each of whose tasks takes so many tokens."""
        other = super().with_max_length(tokens)
        other.tasks = {name: task.with_max_length(tokens) for name, task in self.tasks.items()}
        return other

    @property
    def _limit(self) -> str:
        alike = all(task.max_length == self.max_length for task in self.tasks.values())
        return super()._limit if alike else "max_length of their task"

    def _by_task(self, examples: list[dict], work: Callable[[ChoiceTask, list[dict]], list]) -> list:
        """One result an example: `work` of every task on the examples that are its own."""
        found: dict[int, Any] = {}
        for name in dict.fromkeys(example["task"] for example in examples):
            numbers = [number for number, example in enumerate(examples) if example["task"] == name]
            found |= zip(numbers, work(self.tasks[name], [examples[number] for number in numbers]), strict=True)
        return [found[number] for number in range(len(examples))]

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """accuracy_mean, accuracy_<task>, and the metrics of `held_out` over all right options.

        With `max_new_tokens` also accuracy_generated, accuracy_generated_<task> and, over all examples, `unanswered`.
        Predictions are those of the tasks, with `task` and `correct`, by the primary metric of the task.
        """
        accuracies: dict[str, float] = {}
        generated: dict[str, float] = {}
        rows: dict[str, dict] = {}
        for name, task in self.tasks.items():
            own = [example for example in examples if example["task"] == name]
            if not own:
                continue
            result = task.evaluate(model, own, tokenizer, batch_size=batch_size, progress=progress)
            accuracies[f"accuracy_{name}"] = result.metrics[task.primary_metric]
            if self.max_new_tokens is not None:
                generated[f"accuracy_generated_{name}"] = result.metrics["accuracy_generated"]
            rows |= {
                row["id"]: {**row, "task": name, "correct": row["prediction"] == row["label"]}
                for row in result.predictions
            }
        ordered = [rows[example["id"]] for example in examples]
        metrics = {"accuracy_mean": _mean(accuracies.values()), **accuracies}
        if generated:
            unanswered = _mean(row["unanswered"] for row in ordered)
            metrics |= {"accuracy_generated": _mean(generated.values()), **generated, "unanswered": unanswered}
        return Evaluation({**metrics, **_held_out(ordered)}, ordered)

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """Accuracy of guessing, the mean over the tasks."""
        chances = (
            task.reference_metrics(model, own, tokenizer)["chance_accuracy"]
            for name, task in self.tasks.items()
            if (own := [example for example in examples if example["task"] == name])
        )
        return {"chance_accuracy": _mean(chances)}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _splits_of(name: str, task: ChoiceTask) -> dict[str, list[dict]]:
    try:
        return task.splits()
    except UserError as error:
        # Its message names the settings as if the task stood alone.
        raise UserError(f"task.tasks.{name}: {error}") from error


def _check(key: str, task: Any, mix: Mix) -> None:
    if not isinstance(task, ChoiceTask):
        raise UserError(f"{key}={shortened(task)}: is no multiple-choice task; expected one, or null to leave it out")
    if not task.primary_metric.startswith("accuracy"):
        raise UserError(
            f"{key}.primary_metric={task.primary_metric}: expected an accuracy, for there is a mean of them"
        )
    if task.max_length > mix.max_length:
        raise UserError(f"{key}.max_length={task.max_length}: exceeds task.max_length={mix.max_length}; lower it")
    for setting in ("form", "max_new_tokens", "long_examples"):
        own, whole = getattr(task, setting), getattr(mix, setting)
        if own != whole:
            raise UserError(f"{key}.{setting}={own}: differs from task.{setting}={whole}, which holds for every task")


def _listed(facts: Mapping[str, Mapping[str, Any]], key: str) -> str:
    return "; ".join(f"{name}: {own[key]}" for name, own in facts.items() if own.get(key))


def _held_out(rows: list[dict]) -> dict[str, float]:
    sizes = [{"response_bytes": row["bytes"]} for row in rows]
    scores = [AnswerScore(-row["negative_log_likelihood"], row["tokens"], row["greedy_matches"]) for row in rows]
    return held_out.metrics(sizes, scores)

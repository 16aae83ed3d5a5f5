"""The measurement: rows chosen by several rules, then every start in every layer, one layer after the other."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from rowsft.errors import UserError
from rowsft.importance import metric
from rowsft.progress import steps
from rowsft.quantisation.quantisers import Quantiser, quantiser
from rowsft.quantisation_error.layer import Arithmetic, layer_errors
from rowsft.quantisation_error.result import Measured
from rowsft.quantisation_error.subject import Subject, subject
from rowsft.selection.groups import Scores
from rowsft.selection.ids import Chosen

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BY_ERROR = "rows by error"
RANDOM = "rows by random"


@dataclass(frozen=True)
class Options:
    """What is no part of a run's configuration. quantiser, backend: see `rowsft.quantisation.quantisers`. steps: of the
    alternating starts. adapter_dtype: float32, bfloat16 or float16. svd_iterations: None decomposes exactly.

    Raises UserError for values out of range and names that are unknown.
    """

    quantiser: str = "nf4"
    backend: str = "torch"
    steps: int = 5
    adapter_dtype: str = "float32"
    svd_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.adapter_dtype not in _DTYPES:
            raise UserError(f"adapter_dtype={self.adapter_dtype}: unknown; use one of {', '.join(_DTYPES)}")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: expected 1 or more")
        if self.svd_iterations is not None and self.svd_iterations < 0:
            raise UserError(
                f"svd_iterations={self.svd_iterations}: expected 0 or more; leave it out to decompose exactly"
            )
        self.arithmetic()

    def arithmetic(self) -> Arithmetic:
        """Return the settings as the layers take them."""
        how = quantiser(self.quantiser, self.backend)
        return Arithmetic(how, self.steps, _DTYPES[self.adapter_dtype], self.svd_iterations)


def measure(config: DictConfig, options: Options, data_scores: Callable[[Subject], Scores] | None = None) -> Measured:
    """Measure what a composed configuration asks for; layers are read, computed and dropped one by one.

    data_scores: scores the target layers by the method's metric where that needs training batches. Raises UserError
    for what cannot be measured.
    """
    begun = time.monotonic()
    of, arithmetic = subject(config), options.arithmetic()
    own = metric(of.method.importance)
    scored: Scores | None = None
    if of.needs_data:
        assert data_scores is not None, "a metric that needs data is scored by the caller"
        scored = data_scores(of)
    choices = _choices(of, own.name, scored, arithmetic.quantiser)
    layers = []
    with steps("measuring layers", len(of.names)) as step:
        for name in of.names:
            here = {start: chosen[name] for start, chosen in choices.items()}
            sizes = of.sizes(name, next(iter(here.values())))
            layers.append(layer_errors(name, of.weights.of(name), here, sizes, arithmetic))
            step()
    return Measured(_facts(of, options, own.name), layers, _notes(of), round(time.monotonic() - begun, 3))


def _choices(of: Subject, importance: str, scored: Scores | None, quantiser: Quantiser) -> dict[str, dict[str, Chosen]]:
    """Start -> layer -> the rows and columns that it keeps exact; the method's own metric first."""
    own = f"rows by {importance}"
    scores: dict[str, dict] = {start: {} for start in (own, RANDOM, BY_ERROR)}
    if scored is not None:
        scores[own] = dict(scored)
    targets = of.rows.values["target_modules"]
    with steps("scoring layers", len(targets)) as step:
        for name in targets:
            weight = of.weights.of(name)
            if scored is None:
                scores[own] |= of.scores(importance, name, weight)
            if own != RANDOM:
                scores[RANDOM] |= of.scores("random", name, weight)
            error = (weight - quantiser(weight)).square()
            scores[BY_ERROR][name] = {"rows": error.sum(1), "columns": error.sum(0)}
            step()
    return {start: of.choice(each) for start, each in scores.items()}


def _facts(of: Subject, options: Options, importance: str) -> dict:
    return {
        "source": str(of.config.model.source),
        "dtype": str(of.model.dtype).removeprefix("torch."),
        "quantiser": options.quantiser,
        "backend": options.backend,
        "adapter_dtype": options.adapter_dtype,
        "steps": options.steps,
        "svd_iterations": options.svd_iterations,
        "budget": of.rows.source,
        "parameters_asked": of.rows.asked,
        "channel": of.method.channel,
        "scope": of.rows.values["scope"],
        "importance": importance,
        "seed": of.method.seed,
    }


def _notes(of: Subject) -> list[str]:
    notes = []
    if of.weights.is_whole:
        notes.append("the whole model was loaded, since its files do not hold the layers' weights one by one")
    if str(of.config.model.source).startswith("package:"):
        from rowsft.assets import fetch

        caveat = fetch.about(str(of.config.model.source).removeprefix("package:")).get("caveat")
        notes += [caveat] if caveat else []
    return notes

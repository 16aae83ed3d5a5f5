"""Which learning rate a grid chooses, and which rates it tries next: pure functions of the scores.

Where alphas are tried too, each has a course of rates of its own, and the best of their bests is chosen.

A score is the mean validation metric over the tuning seeds, its sign turned where lower is better; a rate that failed
has the score FAILED. `rowsft tune`, the tuning stage of a sweep and the report all choose by `order`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

FAILED = float("-inf")
#: What a grid needs to count as one: so many rates, neighbours within these ratios.
LEAST_RATES = 5
RATIOS = (2.0, 5.0)


def experiment_of_grid(name: str) -> str:
    """Return the experiment that holds the tuning runs of an experiment."""
    return f"{name}.tuning"


def order(score: float, rate: float, alpha: float | None = None) -> tuple[float, float, float]:
    """Return a sort key under which the best is the largest: the best score, then the lowest rate and alpha."""
    return score, -rate, -(alpha or 0)


def best(scores: Mapping[float, float]) -> float | None:
    """Return the best of {rate: score}; None where every rate failed."""
    able = [rate for rate, score in scores.items() if score != FAILED]
    return max(able, key=lambda rate: order(scores[rate], rate), default=None)


@dataclass(frozen=True)
class Trial:
    """A rate at full length (rung None), or at that of a rung of successive halving, counted from 0.

    alpha: the method's, None where rates alone are tried.
    """

    rate: float
    rung: int | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Grid:
    """What is tried: rates, ascending; rates added at an edge, at most; whether to refine; successive halving.

    rungs: the trainer's settings that make each short run, shortest first; empty without halving. factor: of those
    compared at a rung, one in so many goes on. alphas: ascending, each with all of that for itself; empty where rates
    alone are tried.
    """

    rates: tuple[float, ...]
    extensions: int = 3
    refine: bool = True
    rungs: tuple[Mapping[str, Any], ...] = ()
    factor: int = 3
    alphas: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """The geometric mean of the ratios between neighbours."""
        return (self.rates[-1] / self.rates[0]) ** (1 / (len(self.rates) - 1))

    @property
    def shortcomings(self) -> list[str]:
        """What keeps the grid from being one that a comparison may rest on, in words."""
        said = []
        if len(self.rates) < LEAST_RATES:
            said.append(f"{len(self.rates)} rates, at least {LEAST_RATES} are needed")
        ratios = [high / low for low, high in zip(self.rates, self.rates[1:], strict=False)]
        wrong = [ratio for ratio in ratios if not RATIOS[0] <= ratio <= RATIOS[1]]
        if wrong:
            said.append(f"neighbouring rates differ by a factor of {max(wrong):.3g}, about 3 is needed")
        return said


@dataclass(frozen=True)
class Course:
    """How far the choice among rates has come, at one alpha.

    wanted: what must be run before it goes on; empty when it is over. chosen: the best rate so far, None where every
    rate failed or none is known yet. survivors: the rates that each rung of halving let go on. at_edge: whether the
    best was still the lowest or highest rate tried when no extension was left.
    """

    wanted: tuple[Trial, ...] = ()
    chosen: float | None = None
    extended: tuple[float, ...] = ()
    refined: tuple[float, ...] = ()
    survivors: tuple[tuple[float, ...], ...] = ()
    at_edge: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is left to be tried."""
        return not self.wanted


def course(grid: Grid, scores: Mapping[Trial, float]) -> Course:
    """Return what the scores say so far: the grid first, then extensions, then one half-step refinement."""
    rates = grid.rates
    survivors: list[tuple[float, ...]] = []
    for rung in range(len(grid.rungs)):
        if wanted := _unknown(rates, scores, rung):
            return Course(wanted, survivors=tuple(survivors))
        rates = _going_on({rate: scores[Trial(rate, rung)] for rate in rates}, grid.factor)
        survivors.append(rates)
    extended: list[float] = []
    refined: tuple[float, ...] = ()
    at_edge = False

    def so_far(wanted: tuple[Trial, ...] = ()) -> Course:
        tried = [rate for rate in (*rates, *extended, *refined) if Trial(rate) in scores]
        chosen = best({rate: scores[Trial(rate)] for rate in tried})
        return Course(wanted, chosen, tuple(extended), refined, tuple(survivors), at_edge)

    if wanted := _unknown(rates, scores):
        return so_far(wanted)
    low, high = grid.rates[0], grid.rates[-1]
    while (chosen := so_far().chosen) is not None and chosen in (low, high):
        step = 1 + len(extended)
        further = rounded(grid.rates[0] / grid.ratio**step if chosen == low else grid.rates[-1] * grid.ratio**step)
        at_edge = len(extended) >= grid.extensions
        if at_edge:
            break
        extended.append(further)
        low, high = min(low, further), max(high, further)
        if wanted := _unknown((further,), scores):
            return so_far(wanted)
    if grid.refine and chosen is not None:
        half = math.sqrt(grid.ratio)
        refined = (rounded(chosen / half), rounded(chosen * half))
    return so_far(_unknown(refined, scores))


@dataclass(frozen=True)
class Search:
    """How far the choice has come over all alphas.

    ways: {alpha: the course of its rates}, ascending; {None: ...} where rates alone are tried. best: the rate and alpha
    chosen so far, None where all failed or none is known yet.
    """

    ways: Mapping[float | None, Course]
    best: Trial | None = None

    @property
    def wanted(self) -> tuple[Trial, ...]:
        """What must be run before the choice goes on."""
        return tuple(replace(trial, alpha=alpha) for alpha, way in self.ways.items() for trial in way.wanted)

    @property
    def over(self) -> bool:
        """Whether nothing is left to be tried."""
        return not self.wanted

    @property
    def way(self) -> Course:
        """The course at the chosen alpha."""
        return self.ways[self.best.alpha] if self.best else next(iter(self.ways.values()))


def search(grid: Grid, scores: Mapping[Trial, float]) -> Search:
    """Return what the scores say so far of every alpha: the best of their bests, by `order`."""
    ways: dict[float | None, Course] = {}
    bests: list[Trial] = []
    for alpha in grid.alphas or (None,):
        own = {replace(trial, alpha=None): score for trial, score in scores.items() if trial.alpha == alpha}
        way = ways[alpha] = course(grid, own)
        if way.chosen is not None:
            bests.append(Trial(way.chosen, alpha=alpha))
    return Search(ways, max(bests, key=lambda one: order(scores[one], one.rate, one.alpha), default=None))


def rounded(rate: float) -> float:
    """Return a rate to three significant digits: what is typed, shown and recorded is one number."""
    return float(f"{rate:.3g}")


def as_in_ids(number: float) -> float:
    """Return a number as runs' ids have it: 1.0 and 1 are one setting."""
    return int(number) if number.is_integer() else number


def _unknown(rates: Iterable[float], scores: Mapping[Trial, float], rung: int | None = None) -> tuple[Trial, ...]:
    return tuple(trial for rate in rates if (trial := Trial(rate, rung)) not in scores)


def _going_on(scores: Mapping[float, float], factor: int) -> tuple[float, ...]:
    """Return the best of a rung, one in `factor`, ascending; those that failed do not go on."""
    able = sorted((rate for rate in scores if scores[rate] != FAILED), key=lambda r: order(scores[r], r), reverse=True)
    return tuple(sorted(able[: math.ceil(len(scores) / factor)]))


def in_words(grid: Grid, found: Search) -> str:
    """Return "9 tried (5 + 2 extended + 2 refined)", with what was not usual about the choice."""
    ways = found.ways.values()
    extended, refined = sum(len(way.extended) for way in ways), sum(len(way.refined) for way in ways)
    parts = [f"{len(grid.rates)}" + (f" at each of {len(grid.alphas)} alphas" if len(grid.alphas) > 1 else "")]
    parts += [f"{extended} extended"] if extended else []
    parts += [f"{refined} refined"] if refined else []
    count = sum(len({*grid.rates, *way.extended, *way.refined}) for way in ways)
    said = f"{count} tried ({' + '.join(parts)})" if len(parts) > 1 or len(grid.alphas) > 1 else f"{count} tried"
    said += ", chosen by successive halving" if grid.rungs else ""
    return said + (", still at the edge of what was tried" if found.way.at_edge else "")


def grid_of(tune: Mapping[str, Any], trainer: Mapping[str, Any], has_alpha: bool = False) -> Grid:
    """Return the grid that the settings `tune` ask for, for a run with these settings of the trainer.

    tune: lr, alpha, extensions, refine and halving as in conf/config.yaml. has_alpha: whether the method has one; the
    alphas that are asked for are tried then. Raises ValueError for what is no grid: notes of a
    record that was changed.
    """
    rates = tuple(sorted(float(rate) for rate in tune["lr"]))
    halving = tune.get("halving") or {}
    asked = halving if isinstance(halving, Mapping) else {}
    factor, extensions = asked.get("factor") or 3, tune.get("extensions", 3)
    whole = [isinstance(number, int) and not isinstance(number, bool) for number in (factor, extensions)]
    if len(set(rates)) < 2 or not 0 < rates[0] <= rates[-1] < math.inf or not all(whole) or factor < 2:
        raise ValueError("not a grid of learning rates")
    alphas = tuple(sorted(float(alpha) for alpha in (has_alpha and tune.get("alpha")) or ()))
    if len(set(alphas)) < len(alphas) or not all(0 < alpha < math.inf for alpha in alphas):
        raise ValueError("not a list of alphas")
    rungs: tuple[Mapping[str, Any], ...] = ()
    if halving:
        rungs = tuple(_short(trainer, asked.get("steps"), factor, len(rates)))
    return Grid(rates, extensions, bool(tune.get("refine", True)), rungs, factor, alphas)


def _short(trainer: Mapping[str, Any], steps: Sequence[int] | None, factor: int, rates: int) -> list[dict[str, Any]]:
    """Return the settings of each rung's runs: the steps asked for, else full length over powers of `factor`."""
    whole = trainer.get("steps")
    if steps:
        return [{"steps": own, "epochs": None} for own in sorted(steps) if whole is None or own < whole]
    count = next(power for power in range(1, rates + 1) if factor**power >= rates)
    shares = [factor**power for power in range(count, 0, -1)]
    if whole is None:
        epochs = [rounded(trainer["epochs"] / share) for share in shares]
        return [{"steps": None, "epochs": as_in_ids(own)} for own in epochs]
    lengths = sorted({max(1, round(whole / share)) for share in shares} - {whole})
    return [{"steps": own, "epochs": None} for own in lengths]

"""Which learning rate a grid chooses, against a second, plain account of the rules in docs/tuning.md."""

import math
import random

import pytest

from rowsft.rates import FAILED, Course, Grid, Trial, best, course, grid_of, in_words, rounded, search

FIVE = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def run(grid, score):
    """Run a grid to its end, trial by trial; return the course and every trial in the order of running."""
    scores, rounds = {}, []
    while wanted := course(grid, scores).wanted:
        assert not set(wanted) & set(scores), "nothing is run twice"
        rounds.append(wanted)
        scores |= {trial: score(trial) for trial in wanted}
        assert len(rounds) < 50
    return course(grid, scores), rounds, scores


def by_hand(grid, score):
    """The rules once more, as loops over sorted lists: no sharing of code with rowsft.rates."""
    rates = list(grid.rates)
    for rung in range(len(grid.rungs)):
        ranked = sorted(rates, key=lambda rate: (-score(Trial(rate, rung)), rate))
        kept = [rate for rate in ranked if score(Trial(rate, rung)) > -math.inf]
        rates = kept[: -(-len(rates) // grid.factor)]
    ratio = math.exp((math.log(grid.rates[-1]) - math.log(grid.rates[0])) / (len(grid.rates) - 1))
    known = {rate: score(Trial(rate)) for rate in rates}

    def winner():
        finite = [(-value, rate) for rate, value in known.items() if value > -math.inf]
        return min(finite)[1] if finite else None

    low, high, added = grid.rates[0], grid.rates[-1], []
    at_edge = False
    while winner() is not None and winner() in (low, high):
        if len(added) == grid.extensions:
            at_edge = True
            break
        if winner() == low:
            low = new = float(f"{grid.rates[0] * ratio ** -(len(added) + 1):.3g}")
        else:
            high = new = float(f"{grid.rates[-1] * ratio ** (len(added) + 1):.3g}")
        added.append(new)
        known[new] = score(Trial(new))
    halves = []
    if grid.refine and winner() is not None:
        halves = [float(f"{winner() / ratio**0.5:.3g}"), float(f"{winner() * ratio**0.5:.3g}")]
        known |= {rate: score(Trial(rate)) for rate in halves}
    return winner(), added, halves, at_edge


@pytest.mark.parametrize("seed", range(400))
def test_the_choice_is_that_of_the_rules_by_hand(seed):
    draw = random.Random(seed)
    rates = tuple(sorted(draw.sample([1e-6, 1e-5, *FIVE, 1e-2, 3e-2, 1e-1], draw.randint(2, 6))))
    rungs = tuple({"steps": n} for n in range(draw.randint(0, 2)))
    grid = Grid(rates, draw.randint(0, 4), draw.random() < 0.6, rungs, draw.randint(2, 4))
    peak, coarse = draw.uniform(-7, 0), draw.choice([1, 2, 10])
    table: dict[Trial, float] = {}

    def score(trial):
        """A hill with noise, ties and failures, the same whenever it is asked for."""
        if trial not in table:
            own = random.Random(f"{seed} {trial}")
            value = round(-abs(math.log10(trial.rate) - peak) * own.uniform(0.7, 1.3) * coarse) / coarse
            table[trial] = FAILED if own.random() < 0.15 else value
        return table[trial]

    end, _, _ = run(grid, score)
    assert (end.chosen, list(end.extended), list(end.refined), end.at_edge) == by_hand(grid, score)


def test_a_regular_grid_is_extended_by_its_ratio_until_the_best_is_inside():
    end, rounds, _ = run(Grid(FIVE), lambda trial: -abs(math.log10(trial.rate) + 1.5))
    # The best is near 10 ** -1.5: beyond the grid's upper end of 3e-3.
    assert end.extended == (9.49e-3, 3e-2, 9.49e-2) and not end.at_edge
    assert end.refined == (1.69e-2, 5.33e-2) and end.chosen == 3e-2
    assert [len(wanted) for wanted in rounds] == [5, 1, 1, 1, 2]


def test_a_best_that_stays_at_the_edge_is_said():
    end, _, _ = run(Grid(FIVE, extensions=2, refine=False), lambda trial: trial.rate)
    assert end.at_edge and end.extended == (9.49e-3, 3e-2) and end.chosen == 3e-2
    assert run(Grid(FIVE, extensions=0), lambda trial: -trial.rate)[0].at_edge
    assert not run(Grid(FIVE), lambda trial: -abs(trial.rate - 3e-4))[0].at_edge


def test_of_equal_rates_the_lowest_is_chosen_and_failed_ones_never():
    assert best({1e-3: 0.5, 1e-4: 0.5, 1e-2: 0.4}) == 1e-4
    assert best({1e-3: FAILED, 1e-2: -7.0}) == 1e-2
    assert best({1e-3: FAILED}) is None and best({}) is None
    end, rounds, _ = run(Grid(FIVE), lambda trial: FAILED)
    assert end == Course() and len(rounds) == 1, "no more is spent on a setting that fails at every rate"


def test_halving_compares_runs_of_one_length_and_goes_on_with_the_best_third():
    grid = grid_of({"lr": list(FIVE), "halving": True, "refine": False}, {"steps": 90, "epochs": None})
    assert [dict(rung) for rung in grid.rungs] == [{"steps": 10, "epochs": None}, {"steps": 30, "epochs": None}]
    # Short runs favour high rates, whole ones 1e-3.
    short = {rate: rate for rate in FIVE}
    end, rounds, _ = run(grid, lambda t: -abs(math.log10(t.rate) + 3) if t.rung is None else short[t.rate])
    assert end.survivors == ((1e-3, 3e-3), (3e-3,))
    assert [[trial.rung for trial in wanted] for wanted in rounds] == [[0] * 5, [1] * 2, [None], [None]]
    # What goes on lies at the grid's edge, so the next rate is tried at full length; 3e-3 is the better one.
    assert end.extended == (9.49e-3,) and end.chosen == 3e-3


def test_the_lengths_of_halving():
    def steps(halving, trainer, rates=FIVE):
        return [
            rung["steps"] or rung["epochs"] for rung in grid_of({"lr": list(rates), "halving": halving}, trainer).rungs
        ]

    whole = {"steps": 150, "epochs": None}
    assert steps(True, whole) == [17, 50] and steps(False, whole) == []
    assert steps({"factor": 2}, whole) == [19, 38, 75]
    assert steps({"steps": [60, 20]}, whole) == [20, 60]
    assert steps(True, {"steps": None, "epochs": 3}) == [0.333, 1]
    assert steps(True, {"steps": 2, "epochs": None}) == [1], "lengths that are the same are one"
    assert steps(True, whole, FIVE[:2]) == [50]


def test_what_a_grid_lacks_is_said():
    assert Grid(FIVE).shortcomings == []
    assert Grid(FIVE[1:]).shortcomings == ["4 rates, at least 5 are needed"]
    assert Grid((1e-5, 1e-4, 3e-4, 1e-3, 3e-3)).shortcomings == [
        "neighbouring rates differ by a factor of 10, about 3 is needed"
    ]


def test_a_rate_is_one_number_wherever_it_stands():
    assert rounded(1e-3 * math.sqrt(10)) == 0.00316 and repr(rounded(3e-5 / 10**0.5)) == "9.49e-06"


def run_alphas(grid, score):
    scores, rounds = {}, []
    while wanted := search(grid, scores).wanted:
        assert not set(wanted) & set(scores), "nothing is run twice"
        rounds.append(wanted)
        scores |= {trial: score(trial) for trial in wanted}
        assert len(rounds) < 50
    return search(grid, scores), rounds


@pytest.mark.parametrize("seed", range(100))
def test_each_alpha_goes_its_own_way_and_the_best_of_their_bests_is_chosen(seed):
    draw = random.Random(seed)
    rungs = tuple({"steps": n} for n in range(draw.randint(0, 2)))
    grid = Grid(FIVE, draw.randint(0, 3), draw.random() < 0.6, rungs, 3, alphas=(8.0, 16.0, 32.0))
    coarse, table = draw.choice([1, 2, 10]), {}

    def score(trial):
        if trial not in table:
            own = random.Random(f"{seed} {trial}")
            hill = -abs(math.log10(trial.rate * trial.alpha) + 2) * own.uniform(0.7, 1.3)
            table[trial] = FAILED if own.random() < 0.15 else round(hill * coarse) / coarse
        return table[trial]

    found, _ = run_alphas(grid, score)
    ends = []
    for alpha in grid.alphas:
        rate, added, halves, at_edge = by_hand(grid, lambda one, own=alpha: score(Trial(one.rate, one.rung, own)))
        way = found.ways[alpha]
        assert (way.chosen, list(way.extended), list(way.refined), way.at_edge) == (rate, added, halves, at_edge)
        if rate is not None:
            ends.append((-score(Trial(rate, alpha=alpha)), rate, alpha))
    # Of equal scores the lower rate, then the smaller alpha.
    best = min(ends, default=None)
    assert (found.best and (found.best.rate, found.best.alpha)) == (best and best[1:])


def test_of_equal_scores_the_lower_rate_wins_then_the_smaller_alpha():
    grid = Grid(FIVE, 0, False, alphas=(8.0, 16.0))
    assert run_alphas(grid, lambda trial: 0.5)[0].best == Trial(3e-5, alpha=8.0)
    # The larger alpha is as good at a lower rate.
    peak = {8.0: 1e-3, 16.0: 3e-4}
    assert run_alphas(grid, lambda t: float(t.rate == peak[t.alpha]))[0].best == Trial(3e-4, alpha=16.0)
    found, rounds = run_alphas(grid, lambda t: FAILED if t.alpha == 8 else -t.rate)
    assert found.best == Trial(3e-5, alpha=16.0) and [len(wanted) for wanted in rounds] == [10]
    assert run_alphas(grid, lambda t: FAILED)[0].best is None


def test_all_alphas_run_together_and_are_counted_together():
    grid = Grid(FIVE, alphas=(8.0, 16.0, 32.0))
    found, rounds = run_alphas(grid, lambda t: -abs(math.log10(t.rate * t.alpha / 16) + 1.5) - (t.alpha == 8))
    assert [len(wanted) for wanted in rounds] == [15, 3, 3, 4, 4]
    assert in_words(grid, found) == "29 tried (5 at each of 3 alphas + 8 extended + 6 refined)"
    assert in_words(Grid(FIVE), search(Grid(FIVE), {})) == "5 tried"


def test_alphas_are_read_for_a_method_that_has_one():
    tune, trainer = {"lr": list(FIVE), "alpha": [16, 8.5]}, {"steps": 9, "epochs": None}
    assert grid_of(tune, trainer, has_alpha=True).alphas == (8.5, 16.0) and grid_of(tune, trainer).alphas == ()
    assert grid_of({"lr": list(FIVE)}, trainer, has_alpha=True) == Grid(FIVE)
    for wrong in ([8, 8], [0, 8], [math.inf]):
        with pytest.raises(ValueError, match="not a list of alphas"):
            grid_of(tune | {"alpha": wrong}, trainer, has_alpha=True)

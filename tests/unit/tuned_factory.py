"""A store as a tuned sweep over budgets leaves it: its tuning stage, and its own runs at the chosen rates. Made up."""

import math
from itertools import product

from report_factory import finish, outcomes

from rowsft.rates import grid_of, search

LR = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
TUNE = {"lr": LR, "seeds": [0], "extensions": 1, "refine": True, "halving": False}
#: {line: (method, channel, best rate as a power of ten, accuracy at the largest budget)}
LINES = {
    "rows": ("row_sft", "rows", -2.7, 0.78),
    "columns": ("row_sft", "columns", -2.2, 0.77),
    "neurons": ("row_sft", "neurons", -1.4, 0.76),
    "lora": ("lora", None, -3.1, 0.8),
    "dora": ("dora", None, -3.2, 0.805),
}


#: The lines whose method has an alpha.
WITH_ALPHA = ("lora", "dora")


def method(line, alpha=None):
    name, channel, *_ = LINES[line]
    group = {"_target_": f"baselines.{name}.Method", "name": name, "dropout": 0}
    group |= {"channel": channel} if channel else {}
    return group | ({"scaling": None, "alpha": alpha} if alpha else {})


def validation(line, rows, rate, alpha=None):
    """The score of one run of the grid: a hill over the rate, higher for more rows; best at an alpha of 2 * rows."""
    *_, peak, top = LINES[line]
    off = math.log2(alpha / (2 * rows)) if alpha else 0
    return round(top - 0.2 / rows - 0.05 * (math.log10(rate) - peak) ** 2 - 0.01 * off**2, 4)


def plant(store, lines=tuple(LINES), budgets=(4, 8, 16, 32, 64, 128, 256, 512), seeds=(1, 2, 3), tune=TUNE, **changes):
    """Record everything; return {(line, rows): the rate that its grid chose, with the alpha where there is one}."""
    chosen = {}
    for line, rows in product(lines, budgets):
        shared = {"task": "sentiment", "budget": {"rows": rows}, **changes}
        size = (20_000 * rows, 20_000 * rows + 7 * len(line))
        grid, scores = grid_of(tune, {"steps": 100, "epochs": None}, line in WITH_ALPHA), {}
        while wanted := search(grid, scores).wanted:
            for trial in wanted:
                scores[trial] = validation(line, rows, trial.rate, trial.alpha)
                how = shared | {"method": method(line, trial.alpha)}
                length = dict(grid.rungs[trial.rung]) if trial.rung is not None else {"steps": 100}
                trainer = {"learning_rate": trial.rate, "batch_size": 16, "scheduler": "linear", **length}
                for seed in tune["seeds"]:
                    grid_run = {"experiment": "demo.tuning", "trainer": trainer | {"evaluate": ["validation"]}}
                    finish(store, outcomes(10), seed=seed, size=size, validation=scores[trial], **how | grid_run)
        best = search(grid, scores).best
        rate, alpha = best.rate, best.alpha
        chosen[line, rows] = (rate, alpha) if alpha else rate
        for seed in seeds:
            right = int(100 * validation(line, rows, rate, alpha)) + seed
            peak = 200 + 0.3 * rows + 40 * (LINES[line][0] == "dora")
            trainer = {
                "learning_rate": rate,
                "batch_size": 16,
                "scheduler": "linear",
                "steps": 100,
                "evaluate": ["test"],
            }
            own = {"experiment": "demo", "tune": tune, "trainer": trainer, "method": method(line, alpha)}
            finish(store, outcomes(right), seed=seed, size=size, peak=peak, validation=False, **shared | own)
    return chosen

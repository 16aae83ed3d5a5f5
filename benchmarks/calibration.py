"""How many calibration batches a choice of rows takes: what the choices from 1, 2, 4, ... batches have in common.

    python benchmarks/calibration.py --runs minilm:sentiment minilm:glue/stsb      packaged ones (make assets)
    python benchmarks/calibration.py --runs minilm:sentiment --most 8 --seeds 1    seconds: does everything run?

For every model and task, metric, budget and seed (which orders the data and makes the head): the share of the rows
chosen from n batches that is chosen from 2n, and from all. Writes calibration.json and calibration.md.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from tables import spread, spread_text, table

from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.config.settings import trainer_settings
from rowsft.importance import metric
from rowsft.importance.calibration import Calibration
from rowsft.measure import collect
from rowsft.methods.base import method_of
from rowsft.models.loading import load, targets_of
from rowsft.runner.calibration import TrainingBatches
from rowsft.selection.budget import Budget
from rowsft.selection.ids import Chosen, overlap
from rowsft.store.files import write_atomic
from rowsft.store.score_cache import ScoreCache
from rowsft.tasks import Task

HERE = Path(__file__).resolve().parent
METRICS = ("taylor", "taylor_row", "wanda", "grad2")


def choices(model_name: str, task_name: str, name: str, budgets: list[int], seed: int, most: int) -> dict:
    """Return chosen, {budget: {batches: choice of each layer}}, for powers of two up to `most`; and their seconds."""
    config = compose([f"model={model_name}", f"task={task_name}", f"method.importance={name}", f"seed={seed}"])
    task = instantiated("task", config.task, Task)
    loaded = load(config.model, task.head, task.head_settings(), seed=seed)
    encoded = task.encode(task.splits()["train"], loaded.processor)
    training = TrainingBatches(
        encoded, task.collator(loaded.processor, loaded.model), trainer_settings(config), seed, torch.device("cpu")
    )
    batches = list(training.first(most))
    chosen: dict[int, dict[int, dict[str, Chosen]]] = {budget: {} for budget in budgets}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        count = 1
        while count <= most:
            begin = time.perf_counter()
            for budget in budgets:
                # The second budget reads the scores that the first one made.
                calibration = Calibration(batches[:count], ScoreCache(folder), {"batches": count})
                method = method_of(config.method)
                asked = Budget(**{**config.budget, "rows": budget})
                sizes = method.solve(asked, loaded.model, targets_of(config.model, task.head))
                chosen[budget][count] = method.select(loaded.model, sizes, calibration).chosen
            seconds[count] = time.perf_counter() - begin
            count *= 2
    return {"chosen": chosen, "seconds": seconds}


def medians(row: dict) -> dict[str, float]:
    """Return the medians over seeds of what a row lists, as numbers that `rowsft compare` reads."""
    return {
        f"{kind}_median_at_{n}": median(values)
        for kind in ("double", "all", "seconds")
        for n, values in row[kind].items()
    }


def markdown(result: dict) -> str:
    """A line for every model, task, metric and budget; medians over seeds, lowest and highest in brackets."""
    counts = [2**power for power in range(result["most"].bit_length() - 1)]
    lines = []
    titles = {
        "double": "the % chosen from 2n too",
        "all": f"the % chosen from {result['most']} too",
    }
    for kind, title in titles.items():
        heading = ["model", "task", "metric", "rows", *(f"n = {count}" for count in counts)]
        cells = []
        for row in result["rows"]:
            values = [spread_text(spread(row[kind][str(count)]), 100, ".1f") for count in counts]
            cells.append([row["model"], row["task"], row["metric"], str(row["budget"]), *values])
        lines += [f"Of the rows chosen from n batches, {title}:", "", table(heading, cells), ""]
    about = f"{result['seeds']} seeds: median [lowest, highest]. Commit {result['commit']}; `{result['command']}`"
    lines.append(about)
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; what is done is written at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["minilm:sentiment", "minilm:glue/stsb"], metavar="MODEL:TASK")
    parser.add_argument("--metrics", nargs="+", default=METRICS, metavar="METRIC", help="metrics that read data")
    parser.add_argument("--budgets", nargs="+", type=int, default=[8, 64], help="rows of each layer")
    parser.add_argument("--most", type=int, default=64, help="batches, a power of two")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    options = parser.parse_args(arguments)
    if options.most < 2 or options.most.bit_count() != 1:
        parser.error(f"--most {options.most}: expected a power of two from 2 on")
    if free := [name for name in options.metrics if not metric(name).needs_data]:
        parser.error(f"--metrics {' '.join(free)}: read no data")
    environment = collect({})
    result = {
        "rows": [],
        "labels": ["model", "task", "metric", "budget"],
        "most": options.most,
        "seeds": options.seeds,
        "environment": environment,
        "command": shlex.join(["python", "benchmarks/calibration.py", *(arguments or sys.argv[1:])]),
        "commit": environment["git_commit"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for model_name, _, task_name in (text.partition(":") for text in options.runs):
        for name in options.metrics:
            found = [
                choices(model_name, task_name, name, options.budgets, seed, options.most)
                for seed in range(1, options.seeds + 1)
            ]
            for budget in options.budgets:
                of_seeds = [each["chosen"][budget] for each in found]
                row = {"model": model_name, "task": task_name, "metric": name, "budget": budget}
                halves = [count for count in of_seeds[0] if 2 * count <= options.most]
                row["double"] = {str(n): [overlap(each[n], each[2 * n]) for each in of_seeds] for n in halves}
                row["all"] = {str(n): [overlap(each[n], each[options.most]) for each in of_seeds] for n in halves}
                row["seconds"] = {str(n): [each["seconds"][n] for each in found] for n in of_seeds[0]}
                row |= medians(row)
                result["rows"].append(row)
            write_atomic(options.out / "calibration.json", (json.dumps(result, indent=1) + "\n").encode())
            (options.out / "calibration.md").write_text(markdown(result))
            print(f"{model_name} {task_name}: {name} done", file=sys.stderr)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A store filled through its own interface with runs as the suite would record them; the numbers are made up."""

import numpy as np

from rowsft.store import Store

COSTS = {  # method: adapter parameters, peak MiB, new MiB, step seconds
    "head": (0, 152.0, 40.0, 0.11),
    "row_sft": (221_184, 402.5, 290.1, 0.61),
    "lora": (221_184, 441.25, 329.0, 0.70),
    "dora": (220_608, 566.0, 453.1, 0.89),
    "full": (21_293_568, 700.75, 301.9, 0.72),
}
RATES = {"head": 1e-3, "row_sft": 1e-3, "lora": 3e-4, "dora": 3e-4, "full": 1e-4}
NOISE = {"none": 3.0, "head": 1.25, "row_sft": 0.78, "lora": 0.79, "dora": 0.785, "full": 0.74}
ENVIRONMENT = {
    "packages": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "hardware": {"cpu_model": "Some CPU", "physical_cores": 2, "ram_bytes": 16 * 2**30, "gpus": []},
    "threads": {"torch_threads": 2, "OMP_NUM_THREADS": None},
    "seeds": {"seed": 1},
}
DEMONSTRATION = {
    "is": True,
    "notes": ["300 steps of 16 pairs.", "The model's own training objective is close to the task <b>."],
    "real_command": "rowsft sweep experiment=paper_stsb seed=1,2,3",
}


def config(method="lora", seed=1, experiment="demo", rate=None, task="stsb", model="minilm", **changes):
    """A resolved config with the keys of conf/."""
    group = (
        method if isinstance(method, dict) else {"_target_": f"baselines.{method}.Method", "name": method, "dropout": 0}
    )
    method = group["name"]
    task = task if isinstance(task, dict) else {"name": task, "max_length": 128}
    model = (
        model
        if isinstance(model, dict)
        else {
            "name": model,
            "source": f"package:{model}",
            "dtype": "float32",
            "target_modules": ["query", "value"],
        }
    )
    return {
        "method": group,
        "model": model,
        "task": task,
        "budget": {"rows": None},
        "trainer": {
            "learning_rate": RATES.get(method, 1e-4) if rate is None else rate,
            "steps": 100,
            "batch_size": 16,
            "scheduler": "linear",
            "evaluate": ["validation", "test"],
        },
        "revisions": {"model": model["source"], "data": {}},
        "seed": seed,
        "store": "runs",
        "experiment_name": experiment,
        "tracker": {"name": "none"},
        "demonstration": DEMONSTRATION if experiment == "demo" else None,
    } | changes


def regression(method, seed, n=200, noise=None):
    """Predictions of similarity scores: the same labels for every run, an error of the method and the seed."""
    labels = np.random.default_rng(0).uniform(0, 5, n)
    errors = np.random.default_rng([seed, len(method)]).normal(size=n)
    predictions = labels + (NOISE[method] if noise is None else noise) * errors
    return [
        {"id": f"test-{i}", "split": "test", "prediction": p, "label": t}
        for i, (p, t) in enumerate(zip(predictions, labels, strict=True))
    ]


def classification(method, seed, n=400, share=None):
    """Predictions of two classes, right at a share that falls with the method's noise."""
    generator = np.random.default_rng([seed, len(method), 7])
    right = generator.random(n) < (1 - NOISE[method] / 6 if share is None else share)
    return [
        {"id": i, "split": "test", "prediction": int(i % 2 == 0) ^ int(not ok), "label": int(i % 2 == 0)}
        for i, ok in enumerate(right)
    ]


def metric_of(predictions, task):
    """The primary metric by numpy's own means."""
    a, b = (np.array([line[key] for line in predictions]) for key in ("prediction", "label"))
    return ("pearson", float(np.corrcoef(a, b)[0, 1])) if task == "stsb" else ("accuracy", float((a == b).mean()))


def outcomes(right, n=100):
    """Predictions of `n` examples of which the first `right` are right."""
    return [{"id": f"{i:05d}", "split": "test", "prediction": int(i >= right), "label": 0} for i in range(n)]


def finish(
    store,
    predictions,
    validation=None,
    concurrent_jobs=1,
    facts=None,
    metric=None,
    size=None,
    peak=None,
    forgetting=None,
    others=None,
    optimization=None,
    **arguments,
):
    """Record one finished run and return its id.

    facts: added to the model's. metric: (name, value) instead of the task's own. size: (parameters asked, achieved).
    peak: of training, in MiB. forgetting, optimization: as they are recorded. validation: the metric on that split;
    False leaves it out. others: further metrics of the test split.
    `arguments` are those of `config`.
    """
    wanted = config(**arguments)
    method, seed, task = wanted["method"]["name"], wanted["seed"], wanted["task"]["name"]
    adapter, usual, new, step = COSTS.get(method, (0, None, None, None))
    peak = peak or usual
    name, value = metric or metric_of(predictions, task)
    asked, achieved = size or (221_184, adapter)
    mib = 2**20
    with store.open(wanted) as run:
        attempt = run.begin(environment=ENVIRONMENT, concurrent_jobs=concurrent_jobs)
        attempt.update(
            primary_metric=name,
            higher_is_better=True,
            metrics={
                "validation": {name: value + 0.02 if validation is None else validation},
                "test": {name: value, **(others or {})},
            }
            if validation is not False
            else {"test": {name: value, **(others or {})}},
            parameters={
                "adapter": achieved,
                "head": 385,
                "base": 22_713_216,
                "budget_asked": asked if method in ("row_sft", "lora", "dora") else None,
                "budget_achieved": achieved if method in ("row_sft", "lora", "dora") else None,
            },
            seconds={
                "data": 0.5,
                "load": 2.0,
                "select": 1.5 if method == "row_sft" else 0.0,
                "train": (step or 0) * 100,
                "evaluate": 4.0,
            },
            task_about={
                "source": "a package",
                "licence": "CC BY-SA 4.0",
                "caveat": "close to training",
                "sizes": {"test": 200},
            },
            model_facts={"parameters": 22_713_216, "licence": "Apache-2.0", "revision": "abc", **(facts or {})},
            reference={"cosine_pearson": 0.827} if method == "none" else {},
            resolved={"r": 8, "rank_pattern": {"layer": 7}},
        )
        if forgetting is not None:
            attempt.update(forgetting=forgetting)
        if optimization is not None:
            attempt.update(optimization=optimization)
        if peak is not None:
            attempt.update(
                memory={
                    "kind": "cpu_profiler",
                    "select": {"peak_allocated_bytes": 123 * mib} if method == "row_sft" else None,
                    "train": {"peak_allocated_bytes": peak * mib, "step_peak_new_bytes": new * mib},
                },
                step_seconds={"median": step + 0.001 * seed, "p25": step * 0.9, "p75": step * 1.1, "p95": step * 1.2},
                data_seconds={"median": 0.002, "total": 0.25},
                tokens_per_second=1000 / step,
                steps=100,
            )
            rng = np.random.default_rng(seed)
            fall = 0.1 + 0.2 * NOISE[method]
            losses = fall + (1 - fall) * np.exp(-np.arange(100) / 20) + 0.03 * rng.normal(size=100)
            attempt.write_curve([{"step": i + 1, "loss": float(loss)} for i, loss in enumerate(losses)])
        attempt.write_predictions(predictions)
        attempt.finish("done")
    return run.id


def fail(store, state, error, **arguments):
    """Record one run that ended without a result."""
    with store.open(config(**arguments)) as run:
        run.begin(environment=ENVIRONMENT).finish(state, error=error)
    return run.id


def fill(root):
    """Experiment `demo`: STS-B with three seeds a method, one failed, one out of memory; sentiment with one."""
    store = Store(root)
    finish(store, regression("none", 1), method="none")
    for method in COSTS:
        for seed in (1, 2, 3):
            if (method, seed) not in (("full", 3), ("dora", 3)):
                finish(store, regression(method, seed), method=method, seed=seed)
        finish(store, classification(method, 1), method=method, task="sentiment")
    diverged = {
        "type": "TrainingDiverged",
        "message": "loss is nan at step 12\nmore",
        "traceback": "t",
        "phase": "train",
    }
    memory = {"type": "OutOfMemoryError", "message": "tried to allocate 2 GiB <b>", "traceback": "t", "phase": "train"}
    fail(store, "failed", diverged, method="dora", seed=3)
    fail(store, "oom", memory, method="full", seed=3)
    return store


def status(section, key: str):
    """A section's condition of the contract."""
    return next(condition for condition in section.conditions if condition.key == key)


def section_of(built, task):
    """The section of the fixture `built` about that task."""
    return next(part for part in built[1].sections if part.table.task == task)

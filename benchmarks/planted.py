"""A store of made-up finished runs, for measuring how long listing and reporting take.

python -m benchmarks.planted FOLDER --settings 1000 --seeds 1
"""

import argparse
from pathlib import Path

import numpy as np

from rowsft.record import File, HarnessResult
from rowsft.store import Store, write_jsonl

METHODS = ("row_sft", "lora", "dora", "shira")
SIZES = {"row_sft": 1.0, "lora": 0.998, "dora": 0.992, "shira": 0.995}


def plant(
    root: Path, settings: int, seeds: int, examples: int = 1000, experiment: str = "planted", harness_tasks: int = 0
) -> None:
    """Record `settings` x `seeds` runs: four methods at as many budgets, each with predictions and a training curve.

    harness_tasks: on how many tasks of lm-evaluation-harness each is evaluated, with the same examples' outcomes.
    """
    store = Store(root)
    labels = np.random.default_rng(0).integers(0, 2, examples)
    for number in range(settings):
        method, rows = METHODS[number % len(METHODS)], number // len(METHODS) + 1
        for seed in range(1, seeds + 1):
            generator = np.random.default_rng([number, seed])
            right = generator.random(examples) < 0.75 + 0.1 * generator.random()
            predictions = np.where(right, labels, 1 - labels)
            with store.open(_config(method, rows, seed, experiment)) as run:
                attempt = run.begin(environment=ENVIRONMENT, concurrent_jobs=1)
                attempt.update(**result(method, rows, seed, float(right.mean())))
                attempt.write_curve([{"step": step, "loss": 1 / (step + 1)} for step in range(1, 101)])
                attempt.write_predictions(
                    {"id": f"test-{i}", "split": "test", "prediction": int(p), "label": int(t), "scores": [0.25, -0.5]}
                    for i, (p, t) in enumerate(zip(predictions, labels, strict=True))
                )
                tasks = [_evaluated(attempt.path, f"task{place}", right) for place in range(harness_tasks)]
                attempt.finish("done", **({"lm_eval": tasks} if tasks else {}))


def _evaluated(folder: Path, task: str, right: np.ndarray) -> HarnessResult:
    hits = [{"id": i, "doc": f"{i:016x}", "acc,none": int(hit)} for i, hit in enumerate(right)]
    path = folder / f"lm_eval-1-{task}.jsonl"
    return HarnessResult.of(
        task=task,
        prompts_sha256="0" * 64,
        examples=len(right),
        main_metric="acc,none",
        metrics={"acc,none": float(right.mean()), "acc_stderr,none": 0.01},
        samples=File.of(path=f"{folder.name}/{path.name}", sha256=write_jsonl(path, hits)),
    )


def _config(method: str, rows: int, seed: int, experiment: str) -> dict:
    return {
        "method": {"_target_": f"baselines.{method}.Method", "name": method, "dropout": 0.0, "seed": seed},
        "model": {
            "name": "minilm",
            "source": "package:minilm",
            "revision": None,
            "dtype": "float32",
            "target_modules": ["query", "key", "value"],
            "exclude_modules": None,
        },
        "task": {"name": "sentiment", "_target_": "rowsft.tasks.sentiment.Sentiment", "max_length": 128},
        "budget": {"rows": rows, "ratio": None, "params": None, "like": None, "scope": "layer", "clip": False},
        "trainer": {
            "learning_rate": 1e-3,
            "steps": 100,
            "epochs": None,
            "batch_size": 16,
            "eval_batch_size": 64,
            "scheduler": "linear",
            "evaluate": ["test"],
            "weight_decay": 0.0,
            "autocast": None,
        },
        "revisions": {"model": "package:minilm", "data": {}},
        "seed": seed,
        "store": "runs",
        "experiment_name": experiment,
    }


def result(method: str, rows: int, seed: int, accuracy: float) -> dict:
    asked = 20_772 * rows
    clocks = dict.fromkeys(("min", "p25", "median", "p75", "p95", "max", "mean"), 0.1 + 0.001 * seed)
    return {
        "primary_metric": "accuracy",
        "higher_is_better": True,
        "metrics": {"test": {"accuracy": accuracy, "loss": 1 - accuracy}},
        "parameters": {
            "adapter": round(asked * SIZES[method]),
            "head": 770,
            "base": 22_713_216,
            "budget_asked": asked,
            "budget_achieved": round(asked * SIZES[method]),
            "budget_source": f"budget.rows={rows}",
            "adapter_dtype": "float32",
        },
        "seconds": {"data": 0.5, "load": 2.0, "select": 1.0, "train": 10.0, "evaluate": 4.0, "total": 18.0},
        "step_seconds": {**clocks, "warmup_steps": 3, "timed_steps": 97},
        "data_seconds": {"median": 0.002, "total": 0.25},
        "tokens_per_second": 1000.0,
        "steps": 100,
        "memory": {
            "kind": "cpu_profiler",
            "select": None,
            "train": {"peak_allocated_bytes": (300 + rows) * 2**20, "step_peak_new_bytes": 200 * 2**20},
        },
        "resolved": {"r": 8, "rank_pattern": {f"encoder.layer.{i}.attention.self.query": 7 for i in range(36)}},
        "task_about": {"source": "a package", "licence": "free", "sizes": {"test": 1000}},
        "model_facts": {"parameters": 22_713_216, "revision": "abc", "sha256": "0" * 64},
        "reference": {},
    }


ENVIRONMENT = {
    "packages": dict.fromkeys(("python", "torch", "transformers", "peft", "datasets", "numpy", "hydra-core"), "1.0"),
    "git_commit": "0" * 40,
    "git_dirty": False,
    "hardware": {"cpu_model": "Some CPU", "physical_cores": 2, "ram_bytes": 16 * 2**30, "gpus": []},
    "threads": {"torch_threads": 2, "OMP_NUM_THREADS": None},
    "seeds": {"seed": 1},
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--harness-tasks", type=int, default=0)
    given = parser.parse_args()
    plant(given.folder, given.settings, given.seeds, given.examples, harness_tasks=given.harness_tasks)

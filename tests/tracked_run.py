"""One recorded run with everything that a dashboard shows: curve, memory by part, selection, adapter."""

import numpy as np
from safetensors.numpy import save_file

from rowsft.store import Record, Store

MIB = 2**20
POINTS = [(1, 0.9, 1.5), (2, 0.7, None), (3, 0.4, 1.0)]
PARTS = {
    "base_weights": 8 * MIB,
    "trainable_weights": MIB,
    "gradients": MIB,
    "optimizer_state": 2 * MIB,
    "saved_activations": 3 * MIB,
    "temporary": MIB // 2,
}
#: Rows and columns of the layers of two blocks.
CHOSEN = {
    "encoder.layer.0.attention.self.query.row_sft_ids": [1, 5, 6],
    "encoder.layer.1.attention.self.query.row_sft_ids": [2],
    "encoder.layer.1.output.dense.row_sft_column_ids": [0, 3],
}


def config(seed=3, experiment="small", tracker=None):
    return {
        "method": {"_target_": "rowsft.methods.row_sft.RowSFT", "name": "row_sft", "importance": "l2"},
        "model": {"name": "minilm", "source": "package:minilm"},
        "task": {"name": "sentiment"},
        "budget": {"rows": 4},
        "trainer": {"learning_rate": 1e-3, "steps": 3},
        "seed": seed,
        "experiment_name": experiment,
        "tracker": tracker or {"_target_": "rowsft.tracking.tracker.NullTracker"},
    }


def record_run(root, state="done", **settings) -> Record:
    """Record it in the store at `root` and return it."""
    with Store(root).open(config(**settings)) as run:
        attempt = run.begin()
        moment = {"peak_bytes": sum(PARTS.values()), "parts": PARTS, "measured_peak_bytes": 16 * MIB}
        attempt.update(
            primary_metric="accuracy",
            metrics={"validation": {"accuracy": 0.8, "loss": 0.5}, "test": {"accuracy": 0.75, "loss": 0.6}},
            parameters={"adapter": 221, "head": 10, "total_trainable": 231},
            seconds={"select": 1.5, "train": 12.5},
            step_seconds={"median": 0.25},
            memory={
                "kind": "cpu_profiler",
                "train": {"peak_allocated_bytes": 16 * MIB},
                "ledger": {
                    "select": moment | {"peak_bytes": 10**12, "unattributed_bytes": None},
                    "backward": moment | {"unattributed_bytes": MIB // 2},
                },
            },
        )
        attempt.write_curve(
            [{"step": step, "loss": loss, "grad_norm": norm, "learning_rate": 1e-3} for step, loss, norm in POINTS]
        )
        attempt.write_memory(
            [
                {"event": event, "phase": phase, **{f"{part}_bytes": size * share for part, size in PARTS.items()}}
                for event, phase, share in ((0, "forward", 1), (7, "backward", 2))
            ]
        )
        attempt.write_folder("adapter", _adapter)
        attempt.finish(state)
    return Store(root).get(run.id)


def _adapter(folder):
    tensors = {f"base_model.model.{name}": np.array(ids) for name, ids in CHOSEN.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")

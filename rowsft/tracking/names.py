"""What numbers and tables are called on a dashboard: written by the tracker, read by the panels of the workspace."""

#: A point of the curves is named by its column of curve.csv, below one of these.
TRAIN, VALIDATION = "train/", "validation/"
TRAIN_LOSS, VALIDATION_LOSS = f"{TRAIN}loss", f"{VALIDATION}loss"
LEARNING_RATE, GRAD_NORM = f"{TRAIN}learning_rate", f"{TRAIN}grad_norm"

#: Parts of memory, from the bottom of a stack up (those of rowsft.measure, which imports torch).
PARTS = (
    "base_weights",
    "trainable_weights",
    "optimizer_state",
    "gradients",
    "saved_activations",
    "temporary",
)
#: One training step, event by event: the axis, and a series a part in MiB.
MEMORY_STEP = "memory_step/"
MEMORY_EVENT = f"{MEMORY_STEP}event"
#: The same at the peak of training, one number a part.
MEMORY_AT_PEAK = "memory_at_peak/"

#: Final numbers under names that are alike for all tasks.
PRIMARY = "result/primary"
HELD_OUT_LOSS = "result/held_out_loss"
TRAIN_PEAK = "result/train_peak_mib"
#: The other final numbers have the names of the record, with / between them.
PARAMETERS = "parameters/total_trainable"
TRAIN_SECONDS, SELECT_SECONDS, TOTAL_SECONDS = "seconds/train", "seconds/select", "seconds/total"
STEP_SECONDS = "step_seconds/median"

#: Tables: (key, columns).
LEDGER = "memory_by_part"
LEDGER_COLUMNS = ("phase", "part", "mib")
SELECTION = "selection"
SELECTION_COLUMNS = ("block", "module", "rows", "columns", "layer")
COMPARISON = "comparison"


def memory_step(part: str) -> str:
    """Return the name of a part's series over one training step."""
    return f"{MEMORY_STEP}{part}_mib"


def memory_at_peak(part: str) -> str:
    """Return the name of a part's size at the peak of training."""
    return f"{MEMORY_AT_PEAK}{part}_mib"

"""The metrics as plain functions of predictions and labels, arrays of shape (examples,): for tasks and for the report.

Both use the same definitions, so that an interval belongs to the number beside it. Imports numpy and scipy alone.
"""

from collections.abc import Callable

import numpy as np


def accuracy(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of equal values, 0 to 1."""
    return float(np.mean(prediction == label))


def f1(prediction: np.ndarray, label: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), 0 to 1: of class 1 where there are only 0 and 1, else the mean over classes seen."""
    classes = np.union1d(prediction, label)
    if is_binary(classes):
        classes = np.array([1])
    return float(np.mean([_f1_of(prediction == one, label == one) for one in classes]))


def is_binary(classes: np.ndarray) -> bool:
    """Whether there are no other classes than 0 and 1."""
    return set(classes.tolist()) <= {0, 1}


def pearson(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1; 0 where either side is constant: it explains nothing."""
    a, b = prediction - prediction.mean(), label - label.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else 0.0


def spearman(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; 0 where either side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(prediction), rankdata(label))


def matthews(prediction: np.ndarray, label: np.ndarray) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004, equation 8); 0 where either side is constant."""
    classes = np.union1d(prediction, label)
    a, b = ((side[:, None] == classes).astype(float) for side in (prediction, label))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def _f1_of(predicted: np.ndarray, true: np.ndarray) -> float:
    total = predicted.sum() + true.sum()
    return 2 * (predicted & true).sum() / total if total else 0.0


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    # Multiple choice, by the normalisation of log-likelihoods, and by what the model writes.
    **dict.fromkeys(("accuracy_sum", "accuracy_norm", "accuracy_bytes", "accuracy_tokens", "accuracy_pmi"), accuracy),
    "accuracy_generated": accuracy,
    "exact_match": accuracy,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
    "matthews": matthews,
    "matthews_correlation": matthews,
}
#: Those that classes have no part in.
CORRELATIONS_OF_NUMBERS = (pearson, spearman)


def bounds(name: str) -> tuple[float, float] | None:
    """The range that a metric cannot leave; None where it is not known."""
    if name.startswith("accuracy_"):
        # Of one of several tasks, or their mean.
        return (0.0, 1.0)
    if name not in FORMULAS:
        return None
    return (-1.0, 1.0) if FORMULAS[name] in (*CORRELATIONS_OF_NUMBERS, matthews) else (0.0, 1.0)

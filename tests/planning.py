"""What the tests of plans share: small configurations, and cells of the accuracy grid."""

import sys
from pathlib import Path

from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.plan import Plan, plan

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from plan_accuracy import Case

SMALL = ["model=minilm", "task=sentiment", "trainer.device=cpu", "trainer.batch_size=2", "task.max_length=8"]


def planned(*overrides: str) -> Plan:
    """The plan of these overrides, its texts as long as they may be."""
    config = compose(list(overrides))
    return plan(config, trainer_settings(config))


def small_case(**changes) -> Case:
    """A cell of the grid on which a step takes milliseconds."""
    settings = {"family": "llama", "method": "row_sft", "layers": 2, "width": 32, "batch": 2, "length": 16}
    settings |= {"dtype": "float32", "attention": "sdpa", "checkpointing": False, "padded": True}
    return Case(**{**settings, **changes})

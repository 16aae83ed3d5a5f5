"""Row-SFT as a method of the suite: solve the budget for rows, score, choose, attach the tuner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from rowsft.budget import Unit, row_units
from rowsft.importance import Context, metric, score_layers
from rowsft.method import Knobs, PeftMethod
from rowsft.progress import bar
from rowsft.selection import choose
from rowsft.tuner import RowSFTConfig


@dataclass
class RowSFT(PeftMethod):
    """Train the most important rows of every eligible layer. The keys are explained in conf/method/row_sft.yaml."""

    name: str = "row_sft"
    rows: int | None = None
    ratio: float | None = None
    importance: str = "taylor"
    train_bias: bool = True
    dropout: float = 0.0
    seed: int = 0
    group_bytes: int | None = None

    sizes: ClassVar[tuple[str, ...]] = ("rows", "ratio")
    native: ClassVar[tuple[str, ...]] = ("rows", "ratio")

    def __post_init__(self):
        self.needs_calibration = metric(self.importance).needs_data

    def units(self, layers: dict[str, nn.Module]) -> dict[str, Unit]:
        """A row costs d_in, and its bias entry where there is one and `train_bias` is on."""
        return row_units(layers, self.train_bias)

    def values(self, common: int, pattern: dict[str, int]) -> dict:
        """rows, and rows_pattern for the layers that differ."""
        return {"rows": common, "rows_pattern": pattern, "importance": self.importance, "train_bias": self.train_bias}

    def select(self, model: nn.Module, knobs: Knobs, calibration: Sequence[dict]) -> Knobs:
        """Score the target layers and choose each one's rows; the model is left exactly as it was."""
        values = knobs.values
        layers = {name: model.get_submodule(name) for name in values["target_modules"]}
        progress = bar(f"scoring {self.importance}")
        context = Context(model, calibration, self.seed, self.group_bytes, progress=progress)
        scores = score_layers(layers, self.importance, context)["out"]
        counts = {name: values["rows_pattern"].get(name, values["rows"]) for name in layers}
        return replace(knobs, row_ids=choose(scores, counts, values["scope"]))

    def peft_config(self, model: nn.Module, knobs: Knobs) -> RowSFTConfig:
        """The tuner's configuration with the chosen rows."""
        return RowSFTConfig(
            rows=knobs.values["rows"],
            rows_pattern=knobs.values["rows_pattern"],
            importance=self.importance,
            scope=knobs.values["scope"],
            train_bias=self.train_bias,
            dropout=self.dropout,
            seed=self.seed,
            row_ids=knobs.row_ids,
        )


METHOD = RowSFT

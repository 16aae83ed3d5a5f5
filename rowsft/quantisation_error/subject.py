"""What a configuration says of the measurement: a model's layers, and what rows and ranks its budget gives them."""

from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from rowsft.config.instantiate import instantiated
from rowsft.config.typed import plain
from rowsft.errors import UserError
from rowsft.importance import Context, metric, score_layers
from rowsft.methods.base import ResolvedMethod, method_class, method_of
from rowsft.methods.row_sft import RowSFT
from rowsft.models.blueprint import blueprint
from rowsft.models.loading import targets_of
from rowsft.quantisation_error.layer import Sizes
from rowsft.quantisation_error.weights import Weights, check_plain
from rowsft.selection.budget import Budget
from rowsft.selection.channel import AXES
from rowsft.selection.groups import Scores, parameters
from rowsft.selection.ids import Chosen
from rowsft.tasks import Task


@dataclass(frozen=True)
class Subject:
    """model: on the meta device. rows: the method's sizes. ranks: layer name -> rank at the same budget."""

    config: DictConfig
    method: RowSFT
    model: PreTrainedModel
    rows: ResolvedMethod
    ranks: dict[str, int]
    rank_parameters: int
    weights: Weights

    @property
    def needs_data(self) -> bool:
        """Whether the method's metric scores training batches, with the whole model in memory."""
        return self.method.needs_calibration

    @property
    def names(self) -> list[str]:
        """The layers to measure, in the model's order: those that get rows or a rank."""
        measured = {*self.rows.values["target_modules"], *self.ranks}
        return [name for name, _ in self.model.named_modules() if name in measured]

    def sizes(self, name: str, chosen: Chosen) -> Sizes:
        """Return what a layer gets."""
        counts = {name: (len(chosen.rows), len(chosen.columns))}
        layers = {name: self.model.get_submodule(name)}
        return Sizes(parameters(layers, counts, self.method.train_bias), self.ranks.get(name, 0))  # type: ignore[arg-type]

    def choice(self, scores: Scores) -> dict[str, Chosen]:
        """Return the rows and columns that the budget chooses by `scores`; none in a layer that gets none."""
        chosen = self.method.choose(self.model, self.rows, scores).chosen or {}
        nothing = Chosen(*(torch.empty(0, dtype=torch.int64) for _ in AXES))
        return {name: chosen.get(name, nothing) for name in self.names}

    def scores(self, importance: str, name: str, weight: Tensor) -> Scores:
        """Return a layer's scores by a metric that needs no data. weight: (d_out, d_in)."""
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return score_layers({name: layer}, importance, Context(layer, seed=self.method.seed), AXES)


def subject(config: DictConfig) -> Subject:
    """Put together what a composed configuration asks for, without reading a weight.

    Raises UserError for another method than row-SFT, a metric that is unknown, and what no run could be made of.
    """
    method = method_of(config.method)
    if not isinstance(method, RowSFT):
        raise UserError(
            f"method={config.method.name}: the rows come from row-SFT's settings, and every other start stands beside "
            "them; leave the method out, or use method=row_sft"
        )
    if metric(method.importance).needs == "changed weights":
        raise UserError(
            f"method.importance={method.importance} reads a second checkpoint, beside which this measurement has no "
            "place; use another metric"
        )
    check_plain(config.model)
    head = instantiated("task", config.task, Task).head
    # What a run would quantise on loading is measured as it is before.
    model = blueprint({**config.model, "quantize": None}, head)
    targets, budget = targets_of(config.model, head), Budget(**plain(config.budget))
    weights = Weights(config.model, head, model, config.seed)
    rows = method.solve(budget, model, targets)
    # A size of the method's own is none of the other starts'.
    shared = replace(budget, rows=None, ratio=None, like=None, params=rows.achieved, clip=True)
    low_rank = method_class("lora")().solve(shared if method.own_size() else budget, model, targets)
    pattern = low_rank.values["rank_pattern"]
    ranks = {name: pattern.get(name, low_rank.values["r"]) for name in low_rank.values["target_modules"]}
    return Subject(config, method, model, rows, ranks, low_rank.achieved or 0, weights)

"""The trainer of one of several processes: equal shares of every batch, checkpoints as one process would write them."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import TrainerCallback

from rowsft.compat.trainer import CheckpointsOfRanks, RandomState, ShardedModel
from rowsft.runner import sharding
from rowsft.runner.checkpoints import RUN_STATE
from rowsft.runner.ranks import Ranks
from rowsft.runner.trainer import OrderedTrainer


class RanksTrainer(OrderedTrainer, CheckpointsOfRanks):
    """An OrderedTrainer in one of several processes. A checkpoint is the same whatever their number and strategy.

    Raises UserError where the processes do not start from the same values.
    """

    def __init__(self, ranks: Ranks, **kwargs):
        self.ranks = ranks
        # Of the trained tensors, for the checkpoint that is being written.
        self._gathered: dict[str, torch.Tensor] | None = None
        super().__init__(**kwargs)
        ranks.check_same(self.changes.digest, "trained parameters or rows")
        ranks.check_same(_fingerprint(cast(nn.Module, self.model), kwargs["train_dataset"]), "initial values or data")
        self.add_callback(_Begin(self))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.ranks.is_sharded:
            optimizer.register_load_state_dict_pre_hook(_spread)
        return optimizer

    def write_trained(self, folder: Path) -> None:
        self.changes.write(folder, self._gathered)

    def gather_checkpoint(self, random_state: RandomState) -> tuple[dict[str, Any], list[RandomState]]:
        keep = self.ranks.is_first
        self._gathered = self.changes.gathered(keep)
        assert self.optimizer is not None, "made before the first step"
        state = _whole_state(self.optimizer.state_dict(), keep)
        counts = self.ranks.gathered(self.clock.counts())
        self.clock.count_beside(counts[1:])
        return state, self.ranks.gathered(random_state)

    def reseed(self, checkpoint: Path) -> None:
        step = json.loads((checkpoint / RUN_STATE).read_text(encoding="utf-8"))["step"]
        transformers.set_seed(_seed(self.args.seed, step, self.ranks.rank))


class ShardedTrainer(ShardedModel, RanksTrainer):
    """The same for a model that is sharded already."""


class _Begin(TrainerCallback):
    """Checks what the libraries have wrapped, and gives every process random numbers of its own."""

    def __init__(self, trainer: RanksTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        ranks = self._trainer.ranks
        sharding.check_wrapped(cast(nn.Module, self._trainer.model_wrapped), ranks)
        if ranks.rank:
            # The same masks of dropout on other examples would be no independent draws.
            transformers.set_seed(_seed(args.seed, state.global_step, ranks.rank))


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed for a process: apart from those of others, of other steps and of neighbouring seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:4], "little")


def _fingerprint(model: nn.Module, data: list[dict]) -> str:
    """Sums of what is trained, and of the examples in their order."""
    values = [sharding.whole(p.detach()).double().sum().item() for p in model.parameters() if p.requires_grad]
    sizes = [sum(len(value) for value in row.values() if isinstance(value, list)) for row in data]
    return hashlib.sha256(json.dumps([values, sizes]).encode()).hexdigest()


def _whole_state(state: dict[str, Any], keep: bool) -> dict[str, Any]:
    """An optimizer's state with whole tensors: the form that one process has. Every process takes part."""
    entries = {}
    for number, entry in state["state"].items():
        wholes = {name: _on_cpu(value) for name, value in entry.items()}
        if keep:
            entries[number] = wholes
    return {**state, "state": entries}


def _on_cpu(value: Any) -> Any:
    return sharding.whole(value).cpu() if isinstance(value, sharding.DTensor) else value


def _spread(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Give each process its part of a whole state, before the optimizer loads it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    patterns = dict(zip(numbers, parameters, strict=True))
    spread = {
        number: {
            name: sharding.like(value, patterns[number]) if torch.is_tensor(value) else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": spread}

"""The optimizers of `trainer.optimizer`."""

from typing import Any

import torch
from torch import nn

from rowsft.compat.optimizer_8bit import adamw_8bit
from rowsft.config.settings import TrainerSettings
from rowsft.methods.optimizing import Maker


def optimizer_maker(settings: TrainerSettings) -> Maker:
    """Return what makes the optimizer of the settings."""

    def make(model: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if settings.optimizer == "adamw_8bit":
            return adamw_8bit(model, groups, settings.weight_decay)
        # foreach's temporary copies of every parameter would be charged to full fine-tuning alone.
        on_gpu = groups[0]["params"][0].device.type == "cuda"
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=on_gpu, foreach=False
        )

    return make

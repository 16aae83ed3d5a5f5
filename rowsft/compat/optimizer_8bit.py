"""bitsandbytes' AdamW with its state in 8 bit, and the same without data. Checked in bitsandbytes 0.50.2.

Blocks of 256 entries share a scale; a tensor of fewer than 4,096 entries keeps its state in 32 bit, and so do
embeddings, as bitsandbytes advises and transformers' Trainer has it.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from rowsft.compat.torch import FakeTensor
from rowsft.errors import UserError


def require_bitsandbytes(setting: str) -> None:
    """Raise UserError, naming the `setting` that needs it, where the package is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{setting}: needs bitsandbytes, which is not installed; pip install 'rowsft[quant]'")


def adamw_8bit(model: nn.Module, groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over the groups (`params`, `lr`) with its state in 8 bit.

    On the meta device, or on fake tensors, a step makes the state and updates nothing.
    """
    require_bitsandbytes("trainer.optimizer=adamw_8bit")
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return _classes()[_has_no_data(groups)](embeddings, groups, weight_decay=weight_decay)


def _has_no_data(groups: list[dict[str, Any]]) -> bool:
    first = groups[0]["params"][0]
    return first.is_meta or isinstance(first, FakeTensor)


@cache
def _classes() -> tuple[type, type]:
    """The optimizer, and the one without data; late, for the import takes a second."""
    from bitsandbytes.optim import AdamW8bit as Base

    class AdamW8bit(Base):
        def __init__(self, embeddings: set[nn.Parameter], *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._embeddings = embeddings

        def get_config(self, gindex: int, pindex: int, group: dict) -> dict:
            """Its global manager would hold the modules of every run of a process."""
            config = super().get_config(gindex, pindex, group)
            in_32_bit = self.param_groups[gindex]["params"][pindex] in self._embeddings
            return {**config, "optim_bits": 32} if in_32_bit else config

    class StatefulAdamW8bit(AdamW8bit):
        @torch.no_grad()
        def step(self, closure=None):
            """Make the state that is missing."""
            for gindex, group in enumerate(self.param_groups):
                for pindex, parameter in enumerate(group["params"]):
                    if parameter.grad is not None and not self.state[parameter]:
                        self.init_state(group, parameter, gindex, pindex)

    return AdamW8bit, StatefulAdamW8bit

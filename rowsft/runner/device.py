"""The one device that a process of a run computes on."""

import torch

from rowsft.config.devices import index_of
from rowsft.config.processes import local_rank
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError


def run_device(settings: TrainerSettings) -> torch.device:
    """Return the one device that this process of a run computes on: `auto` takes a GPU when there is one.

    Raises UserError where a GPU is asked for and it is not visible.
    """
    name, index = settings.device, index_of(settings.device)
    if settings.strategy is not None:
        index = local_rank()
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"trainer.device={name}: no CUDA device is visible; use auto or cpu")
    if index >= torch.cuda.device_count():
        raise UserError(
            f"trainer.device={name}: {torch.cuda.device_count()} CUDA devices are visible, counted from 0; "
            "choose one of them"
        )
    return torch.device("cuda", index)

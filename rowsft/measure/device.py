"""The one place that decides how a device is measured."""

from typing import Literal

import torch

from rowsft.errors import UserError


def device_kind(device: str | torch.device) -> Literal["cpu", "cuda"]:
    """Return "cpu" or "cuda" for a torch device or its name. Raises UserError for a device that cannot be measured."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "cpu"
    if kind == "cuda":
        return "cuda"
    raise UserError(f"device {device}: time and memory are measured on cpu or cuda only; set trainer.device=cpu")


def synchronize(device: str | torch.device) -> None:
    """Wait until all work queued on a GPU is done; nothing on a CPU, whose work is done when a call returns."""
    if device_kind(device) == "cuda":
        torch.cuda.synchronize(device)

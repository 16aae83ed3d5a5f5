"""What is used of accelerate beyond its published interface. Checked in accelerate 1.10 to 1.15."""

from typing import Any

from accelerate.utils import convert_outputs_to_fp32
from torch import nn

# The Trainer wraps a model's forward in it under autocast; a plan, which has no Trainer, does the same.
__all__ = ["convert_outputs_to_fp32", "exchanges_weights", "hook_of"]


def hook_of(module: nn.Module) -> Any:
    """Return the hook that accelerate has put on the module, None without one: it can be added, and not be read."""
    return vars(module).get("_hf_hook")


def exchanges_weights(hook: Any) -> bool:
    """Return whether a hook may bring or cast the weight after the module's forward has begun.

    Only those that say offload=False are known to leave it where it is, as those of a device_map do.
    """
    if hasattr(hook, "hooks"):
        return any(map(exchanges_weights, hook.hooks))
    return getattr(hook, "offload", True)

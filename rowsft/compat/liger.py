"""liger-kernel's fused linear cross-entropy, which transformers' Trainer applies. Written after the source of 0.8.5."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from rowsft.errors import UserError

_SETTING = "trainer.fused_linear_cross_entropy=true"
# Its other kernels would change what is measured of a method.
_OTHERS = ("cross_entropy", "geglu", "layer_norm", "relu_squared", "rms_norm", "rope", "swiglu")


def check_fused_loss(device: torch.device) -> None:
    """Raise UserError where the kernel cannot run."""
    if device.type != "cuda":
        raise UserError(
            f"{_SETTING}: liger-kernel runs on CUDA alone, and this run is on {device.type}; leave it out, or run it "
            "on a GPU (trainer.device=cuda)"
        )
    if find_spec("liger_kernel") is None:
        raise UserError(f"{_SETTING}: needs liger-kernel, which is not installed; pip install 'rowsft[lean]'")


def fused_loss_arguments(model: nn.Module) -> dict[str, Any]:
    """Return what tells transformers' Trainer to fuse the output layer of `model` with its loss, and nothing else.

    Raises UserError for a model that liger-kernel does not know: the Trainer would leave it as it is.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in KNOWN:
        raise UserError(
            f"{_SETTING}: liger-kernel does not know models of type {kind}; leave it out, or use one of "
            f"{', '.join(sorted(KNOWN))}"
        )
    kernels = {"fused_linear_cross_entropy": True, **dict.fromkeys(_OTHERS, False)}
    return {"use_liger_kernel": True, "liger_kernel_config": kernels}

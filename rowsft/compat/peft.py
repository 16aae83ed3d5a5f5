"""What is used of PEFT beyond its published interface. Checked in PEFT 0.21.0 to 0.21.2."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers as name_all_linear_layers
from peft.utils import PeftType, register_peft_method
from torch import nn

# `BufferDict` keeps an adapter's buffers by its name, as `ParameterDict` its parameters. `name_all_linear_layers` puts
# full names in the place of target_modules="all-linear", as PEFT does after a tuner has looked at the model: too late.
__all__ = ["BufferDict", "loads_as_lora", "name_all_linear_layers", "register"]


def loads_as_lora(model: nn.Module, name: str) -> bool:
    """Return whether PEFT loads LoRA factors of the layer: it refuses those that Mamba's kernels read themselves."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return False
    return True


def register(name: str, prefix: str, config_cls: type, model_cls: type) -> None:
    """Make a method of another package known to PEFT; calling it again changes nothing.

    `register_peft_method` is public, but asks for a member of the enum `PeftType`, which is closed.

    Args:
        name: of the method, in capitals.
        prefix: of the names of its tensors, `model_cls.prefix`.
        config_cls: subclass of `peft.PeftConfig`.
        model_cls: subclass of `peft.tuners.tuners_utils.BaseTuner`.
    """
    if name not in PeftType.__members__:
        member: Any = str.__new__(PeftType, name)
        member._name_ = name
        member._value_ = name
        member._sort_order_ = len(PeftType)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    if PeftType(name) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=name.lower(), config_cls=config_cls, model_cls=model_cls, prefix=prefix)

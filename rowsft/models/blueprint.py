"""A model without weights, on the meta device: from its configuration alone, for plans and for checks of adapters."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from rowsft.compat.hub import without_waiting
from rowsft.errors import UserError
from rowsft.models.options import attention_kernel, check_dtype, check_kind, configure, dtype_of, model_class
from rowsft.models.quantising import check_quantize, quantise
from rowsft.models.source import readable, resolve
from rowsft.tasks.heads import Head

SHIPPED_CONFIGS = Path(__file__).parent / "configs"
# What a configuration has to say before a model can be built from it.
_SIZES = ("hidden_size", "num_hidden_layers")
# Said, too, where the class has them and does not work them out of the others.
_USUAL_SIZES = ("vocab_size", "num_attention_heads", "intermediate_size", "ffn_dim", "hidden_dim")
_NO_MODEL = (ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)


def skeleton(
    model_cfg: Mapping[str, Any], head: Head, head_settings: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model that `load` would give, on the meta device: names and shapes, no weights read.

    Without `head_settings` the head is as the checkpoint's configuration has it. Raises UserError for a source that
    cannot be read.
    """
    source = str(model_cfg["source"])
    place, options = resolve(source, model_cfg)
    with readable(source):
        config = AutoConfig.from_pretrained(place, **options)
    configure(config, head_settings)
    with torch.device("meta"):
        return model_class(head).from_config(config, trust_remote_code=options["trust_remote_code"])


def blueprint(
    model_cfg: Mapping[str, Any], head: Head, head_settings: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """`skeleton` in the dtype, packed and with the attention kernel as `model_cfg` says, and without a network where it
    can be.

    Configurations of the models in conf/model that a licence or a network stands before come along with the package
    (`SHIPPED_CONFIGS`). Raises UserError for a source that cannot be read and a configuration without sizes.
    """
    source = str(model_cfg["source"])
    shipped = SHIPPED_CONFIGS / f"{re.sub('[:/]', '--', source)}.json"
    trusted = bool(model_cfg.get("trust_remote_code", False))
    with _sensible(source), readable(source):
        if shipped.is_file():
            given = json.loads(shipped.read_text())
            config = AutoConfig.for_model(**given)
        else:
            place, options = resolve(source, model_cfg)
            if "revision" in options:
                options = without_waiting(options)
            given, _ = PretrainedConfig.get_config_dict(place, **options)
            config = AutoConfig.from_pretrained(place, **options)
    check_kind(source, config, head)
    _check_sizes(source, config, {**given, **given.get("text_config", {})})
    configure(config, head_settings)
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = 0
    dtype = dtype_of(model_cfg.get("dtype"))
    check_dtype(config, dtype)
    kernel = model_cfg.get("attn_implementation")
    options = {} if kernel is None else {"attn_implementation": kernel}
    quantize = check_quantize(model_cfg)
    with _sensible(source), torch.device("meta"), attention_kernel(model_cfg):
        model = model_class(head).from_config(
            config,
            dtype=(config.dtype or torch.float32) if dtype == "auto" else dtype,
            trust_remote_code=trusted,
            **options,
        )
    if quantize is not None:
        quantise(model, quantize, model_cfg.get("head_modules") or [], source)
    return model


@contextmanager
def _sensible(source: str) -> Iterator[None]:
    """Turn what transformers and torch raise for values that no model can have into one UserError."""
    try:
        yield
    except UserError:
        raise
    except _NO_MODEL as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.source={source}: no model of the task's kind can be made from its configuration "
            f"({type(error).__name__}: {first}); check its config.json"
        ) from error


def _check_sizes(source: str, config: PretrainedConfig, given: Mapping[str, Any]) -> None:
    """Raise UserError for sizes that the configuration leaves open, or that do not go together."""
    text = config.get_text_config()
    # A class has sizes of its own for whatever is left out: they would be made up.
    fixed = [name for name in _USUAL_SIZES if isinstance(getattr(type(text), name, None), int)]
    other_names = text.attribute_map
    missing = [name for name in (*_SIZES, *fixed) if name not in given and other_names.get(name) not in given]
    if missing:
        raise UserError(
            f"model.source={source}: its configuration ({config.model_type}) does not say {', '.join(missing)}; a plan "
            "needs the sizes, so give a folder or repository with a whole config.json"
        )
    if given.get("quantization_config"):
        raise UserError(
            f"model.source={source}: its weights are quantised, and a plan cannot tell their size; measure it with "
            "rowsft run trainer.steps=3"
        )
    heads, shared = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise UserError(
            f"model.source={source}: num_attention_heads={heads} is no multiple of num_key_value_heads={shared}; "
            "check its config.json"
        )

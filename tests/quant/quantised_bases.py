"""Tiny checkpoints, loaded quantised; and the plain models that they stand for, by brute force."""

import copy
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tiny import tiny_bert, tiny_llama
from torch import nn
from transformers import BertModel

from rowsft.models.loading import load
from rowsft.tasks.heads import CAUSAL_LM, SEQUENCE_CLASSIFICATION, label_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from task_tools import bpe, words  # noqa: E402

KINDS = ["nf4", "nf4_double", "int8"]
HEAD = ["pooler", "classifier", "score"]


def save_llama(folder: Path) -> Path:
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    bpe().save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    model = tiny_bert(hidden_size=64, intermediate_size=128)
    BertModel.from_pretrained(None, config=model.config, state_dict=model.bert.state_dict()).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def settings(folder: Path, quantize: str | None, **changes):
    """conf/model of a saved checkpoint."""
    base = {"name": "tiny", "source": str(folder), "revision": None, "dtype": "float32", "attn_implementation": "sdpa"}
    return OmegaConf.create({**base, "head_modules": HEAD, "quantize": quantize, **changes})


def loaded(folder: Path, quantize: str | None = "nf4", **changes):
    """The model of a saved checkpoint, as a run loads it."""
    if "bert" in folder.name:
        return load(settings(folder, quantize, **changes), SEQUENCE_CLASSIFICATION, label_settings(3)).model
    return load(settings(folder, quantize, **changes), CAUSAL_LM).model


def stood_for(layer: nn.Module) -> torch.Tensor:
    """What a packed weight stands for, entry by entry from its codes and scales, in 64 bit."""
    weight = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.qdata.double() * weight.scale.double().reshape(-1, 1)
    scales = state.absmax.double()
    if state.nested:
        outer = state.state2
        entries = outer.code.double()[state.absmax.long()]
        scales = (
            entries * outer.absmax.double().repeat_interleave(outer.blocksize)[: len(entries)] + state.offset.double()
        )
    codes = torch.stack([weight.data.flatten() >> 4, weight.data.flatten() & 15], dim=1).flatten().long()
    values = state.code.double()[codes] * scales.repeat_interleave(state.blocksize)[: len(codes)]
    return values.reshape(layer.out_features, layer.in_features)


def dense(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A copy with plain layers in the places of packed ones."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if (
            isinstance(layer, nn.Linear)
            and layer.weight.shape != (layer.out_features, layer.in_features)
            or (isinstance(layer, nn.Linear) and type(layer.weight) is not nn.Parameter)
        ):
            made = nn.Linear(layer.in_features, layer.out_features, bias=False)
            made.weight.data, made.bias = stood_for(layer), layer.bias
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, made)
    return plain.to(dtype)

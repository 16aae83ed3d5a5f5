"""A checkpoint's weights, one layer at a time where its files allow it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, as_matrix
from rowsft.models.loading import load
from rowsft.models.source import readable, resolve
from rowsft.models.stored import StoredTensors
from rowsft.store.whole_checkpoint import INDEX
from rowsft.tasks.heads import Head


class Weights:
    """The weights of some layers of a model, read from its safetensors files when they are asked for.

    Where these do not hold them under the model's names and shapes (other formats, layouts that transformers converts,
    random weights), the whole model is loaded once; `is_whole` says so.
    """

    def __init__(self, model_cfg: Mapping[str, Any], head: Head, skeleton: PreTrainedModel, seed: int) -> None:
        """skeleton: the model on the meta device, whose names, shapes and dtype count. seed: of weights that are drawn.

        Raises UserError for a source that cannot be read.
        """
        self._source, self._skeleton = str(model_cfg["source"]), skeleton
        self._tensors = StoredTensors(skeleton.base_model_prefix)
        self._model: nn.Module | None = None
        place, options = resolve(self._source, model_cfg)
        with readable(self._source):
            if model_cfg.get("pretrained", True):
                self._tensors = StoredTensors.of(_folder(place, options), skeleton.base_model_prefix)
            layers = {name: each for name, each in skeleton.named_modules() if isinstance(each, LinearLayer)}
            self._names = {name: self._stored_name(name, layer) for name, layer in layers.items()}
        plain = {**model_cfg, "quantize": None}
        self._load = lambda: load(plain, head, seed=seed).model

    @property
    def is_whole(self) -> bool:
        """Whether the whole model had to be loaded."""
        return self._model is not None

    def of(self, name: str) -> Tensor:
        """Return the weight of layer `name` as (d_out, d_in), float32, rounded to the model's dtype before."""
        layer: Any = self._skeleton.get_submodule(name)
        stored = self._names[name]
        if stored is None:
            if self._model is None:
                self._model = self._load()
            holder: Any = self._model.get_submodule(name)
            weight = holder.weight.detach()
        else:
            with readable(self._source):
                weight = self._tensors.read(stored)
        return as_matrix(layer, weight.to(layer.weight.dtype)).to(torch.float32).contiguous()

    def _stored_name(self, name: str, layer: LinearLayer) -> str | None:
        """What the files call a layer's weight; None where they hold none of its shape."""
        name_in_files = next(self._tensors.names(name), None)
        if name_in_files is None or self._tensors.shape(name_in_files) != tuple(layer.weight.shape):
            return None
        return name_in_files


def check_plain(model_cfg: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint whose weights are quantised already, or that cannot be read."""
    source = str(model_cfg["source"])
    place, options = resolve(source, model_cfg)
    with readable(source):
        given, _ = PretrainedConfig.get_config_dict(place, **options)
    if given.get("quantization_config"):
        raise UserError(
            f"model.source={source}: its weights are quantised already, so there is nothing to compare with; give the "
            "checkpoint that they were made from"
        )


def _folder(place: str, options: Mapping[str, Any]) -> Path:
    """The folder of a checkpoint; of one on the hub, with its safetensors alone."""
    folder = Path(place)
    if folder.is_dir():
        return folder
    wanted = ["model*.safetensors", INDEX]
    return Path(snapshot_download(place, revision=options.get("revision"), allow_patterns=wanted))

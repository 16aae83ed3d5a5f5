"""The weights that a finished fine-tuning has given the layers of a model, read one layer at a time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from rowsft.errors import UserError, shortened
from rowsft.models.stored import StoredTensors
from rowsft.store.whole_checkpoint import check_whole


class ChangedWeights:
    """A second checkpoint of a model: layer name -> its weight there, stored as the model's layer stores its own.

    setting: how errors call it.
    """

    def __init__(self, folder: str | Path, model: Any, setting: str):
        """model: what the checkpoint must be of; one on the meta device will do.

        Raises UserError for a folder without a whole checkpoint in safetensors, and for one of another architecture.
        """
        self._what = f"{setting}={folder}"
        path = Path(folder).expanduser()
        check_whole(path, self._what)
        try:
            config = json.loads((path / "config.json").read_bytes())
            self._tensors = StoredTensors.of(path, model.base_model_prefix)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise self._unreadable(error) from error
        own, other = model.config.model_type, config.get("model_type")
        if own != other:
            raise UserError(f"{self._what}: a checkpoint of a {other} model; expected one of this run's, {own}")
        if config.get("quantization_config"):
            raise UserError(f"{self._what}: its weights are quantised; expected a full fine-tuning's, which are not")

    def check(self, layers: Iterable[tuple[str, Any]]) -> None:
        """Raise UserError where a layer is not in the files, or has another shape there. Reads no weight."""
        for name, layer in layers:
            shape, expected = self._tensors.shape(self._name(name)), tuple(layer.weight.shape)
            if shape != expected:
                raise UserError(
                    f"{self._what}: layer {name} has a weight of shape {shape} there and {expected} in this run's "
                    "model; expected a checkpoint of the same model"
                )

    def __call__(self, layer: str) -> Tensor:
        """Return the weight of a layer, on the CPU. Raises UserError where it cannot be read."""
        try:
            return self._tensors.read(self._name(layer))
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from error

    def _name(self, layer: str) -> str:
        name = next(self._tensors.names(layer), None)
        if name is None:
            raise UserError(
                f"{self._what}: its files hold no {layer}.weight; expected a checkpoint of the same model, saved whole"
            )
        return name

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self._what}: cannot be read ({shortened(error, 200)}); save the checkpoint again")

"""The configuration of a row-SFT adapter."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType

from rowsft.errors import UserError

SCOPES = ("layer", "global")
ATTENTION = ("linear", "grouped", "skip")


@dataclass
class RowSFTConfig(PeftConfig):
    """Configuration of a [`RowSFTModel`]: how many rows of which layers are trained, and how they are chosen.

    Exactly one of `rows` and `ratio` sets the size; `rows_pattern` overrides it for single layers, or sets it alone.

    Args:
        rows (`int`, *optional*): rows k trained in every target layer, at least 1.
        ratio (`float`, *optional*): rows as a share of the layer's d_out, in (0, 1]; the nearest count, at least 1.
        rows_pattern (`dict[str, int]`): full layer name (`model.layers.0.self_attn.q_proj`) to k. 0 leaves that layer
            frozen. Without `rows` and `ratio`, layers that are not named are left frozen too.
        channel (`str`): what is trained; `out` is rows of W (d_out, d_in), that is output neurons.
        importance (`str`): the metric that chose, or chooses, the rows.
        scope (`str`): `layer` (each layer its own top k) or `global` (one threshold; needs `row_ids`).
        attention (`str`): `linear`, `grouped` (q, k and v share rows; needs `row_ids`) or `skip`, as in the paper.
        target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in `LoraConfig`.
        train_bias (`bool`): also train the bias entries of the chosen rows, where the layer has a bias.
        dropout (`float`): LoRA-style input dropout on the update only; costs a second product of k rows in training.
        seed (`int`): seed of the generator behind importance `random`.
        row_ids (`dict[str, sequence or tensor of int]`, *optional*): full layer name to the chosen rows (k,). Runtime
            only: the ids are saved as tensors of the adapter and never enter `adapter_config.json`.
        rows_in_checkpoint (`bool`): set in the saved copy of the config only. It says that the row ids arrive with the
            adapter's tensors, so nothing is scored on loading.

    Raises:
        UserError: for a value out of range or two sizes at once.
    """

    rows: int | None = None
    ratio: float | None = None
    rows_pattern: dict[str, int] | None = None
    channel: str = "out"
    importance: str = "l2"
    scope: str = "layer"
    attention: str = "linear"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    train_bias: bool = True
    dropout: float = 0.0
    seed: int = 0
    row_ids: Mapping[str, Sequence[int]] | None = field(default=None, repr=False, compare=False)
    rows_in_checkpoint: bool = False
    columns_pattern: dict[str, int] | None = None
    column_ids: Mapping[str, Sequence[int]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.ROW_SFT
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), (list, tuple)):
                setattr(self, name, set(getattr(self, name)))
        self._check_size()
        self._check_choices()
        self._check_targets()

    def _check_size(self) -> None:
        if self.rows is not None and self.ratio is not None:
            raise UserError(f"rows={self.rows} and ratio={self.ratio} are both set; set one of them")
        if self.rows is not None and (not _is_int(self.rows) or self.rows < 1):
            raise UserError(f"rows={self.rows!r} is not a row count; give a whole number of at least 1")
        if self.ratio is not None and not (isinstance(self.ratio, (int, float)) and 0 < self.ratio <= 1):
            raise UserError(f"ratio={self.ratio!r} is not a share of a layer's rows; give a number in (0, 1]")
        for name, rows in (self.rows_pattern or {}).items():
            if not _is_int(rows) or rows < 0:
                raise UserError(f"rows_pattern[{name!r}]={rows!r} is not a row count; give a whole number, 0 to freeze")

    def _check_choices(self) -> None:
        for name, known in (("channel", ("out", "in", "half", "neuron")), ("scope", SCOPES), ("attention", ATTENTION)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is not known; choose from: {', '.join(known)}")
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise UserError(f"dropout={self.dropout!r} is not a probability; give a number in [0, 1)")

    def _check_targets(self) -> None:
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise UserError(
                    f"{name}={getattr(self, name)!r} has no effect when target_modules is a string "
                    f"({self.target_modules!r}); list the module names, or write the layers into the regular expression"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform; set both or neither")

    def rows_of(self, layer_name: str, units: int) -> int:
        """Rows trained in one layer of `units` (d_out) rows; 0 leaves it frozen.

        Raises:
            UserError: when the layer has fewer rows than asked for, or no size is set at all.
        """
        pattern = self.rows_pattern or {}
        if layer_name in pattern:
            rows = pattern[layer_name]
        elif self.rows is not None:
            rows = self.rows
        elif self.ratio is not None:
            rows = max(1, math.floor(self.ratio * units + 0.5))
        elif self.rows_pattern is not None:
            rows = 0
        else:
            raise UserError("no size is set; give rows, ratio, rows_pattern or row_ids")
        if rows > units:
            raise UserError(
                f"rows={rows} exceeds layer {layer_name} ({units} rows); lower budget.rows, or set rows_pattern for it"
            )
        return rows

    def to_dict(self) -> dict:
        """The configuration as plain JSON values: sets become sorted lists, the runtime-only `row_ids` is left out."""
        bare = copy.copy(self)
        bare.row_ids = bare.column_ids = None
        values = super(RowSFTConfig, bare).to_dict()
        del values["row_ids"], values["column_ids"]
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Save `adapter_config.json`; only this copy says that the row ids are in the checkpoint."""
        saved = copy.copy(self)
        saved.rows_in_checkpoint = True
        super(RowSFTConfig, saved).save_pretrained(save_directory, **kwargs)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

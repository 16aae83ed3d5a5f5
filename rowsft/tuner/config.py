"""The configuration of a row-SFT adapter."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft.config import PeftConfig
from peft.utils import PeftType

from rowsft import renamed
from rowsft.errors import UserError
from rowsft.selection.budget import nearest
from rowsft.selection.channel import ATTENTION, CHANNELS, SCOPES


@dataclass
class RowSFTConfig(PeftConfig):
    """Configuration of a [`RowSFTModel`]: how many rows and columns of which layers are trained, and how chosen.

    At most one of `rows` and `ratio` sets the size; the patterns override it for single layers, or set it alone.

    Args:
        rows (`int`, *optional*): rows (columns, rows plus columns, units: what the channel trains) k of every target
            layer, at least 1.
        ratio (`float`, *optional*): the same as a share of the layer's d_out (of d_in for columns), in (0, 1]; the
            nearest count, at least 1.
        rows_pattern (`dict[str, int]`): full layer name (`model.layers.0.self_attn.q_proj`) to its number of rows. 0
            trains none. Without `rows` and `ratio`, layers that no pattern names are left frozen too.
        columns_pattern (`dict[str, int]`): full layer name to its number of columns, likewise.
        channel (`str`): what is trained. `rows` of W (d_out, d_in), that is output neurons; `columns`, that is input
            features; `both`: k/2 rows, the odd one too, and k/2 columns of every layer, crossing entries once;
            `neurons`: hidden units, as rows of the layers that produce them and columns of those that consume them
            (chosen by `rowsft.attach`, or given).
        importance (`str`): the metric that chose, or chooses, the rows and columns.
        scope (`str`): `layer` (each layer its own top k) or `global` (one threshold; needs the ids).
        attention (`str`): `linear`, `grouped` (q, k and v share rows; needs the ids) or `skip`, as in the paper.
        target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in `LoraConfig`.
        train_bias (`bool`): also train the bias entries of the chosen rows, where the layer has a bias.
        dropout (`float`): LoRA-style input dropout on the update only; costs a second product of the update's size in
            training.
        recompute_inputs (`bool`): compute a layer's input again in backward from what the frozen network's graph keeps
            anyway, instead of keeping it for the gradient of the rows. False keeps every input.
        seed (`int`): seed of the generator behind importance `random`.
        init_weights (`bool`): start at zero change. False starts from standard normal values, as tests of adapters want
            them; the model then computes something else from the start.
        row_ids, column_ids (`dict[str, sequence or tensor of int]`, *optional*): full layer name to the chosen rows
            (columns). Runtime only: the ids are saved as tensors of the adapter and never enter `adapter_config.json`.
            With channel `neurons` or scope `global` they settle the sizes of the layers.
        base_quantization (`str`, *optional*): what the base that the adapter was trained on was packed in (`nf4`,
            `nf4_double`, `int8`), where the suite has packed it; the adapter is a change of those weights.
        quantised_start (`str`, *optional*): where the rows and columns started there: `residual` (W - Q) or `zero`.
        rows_in_checkpoint (`bool`): set in the saved copy of the config only. It says that the ids arrive with the
            adapter's tensors, so nothing is scored on loading for inference. A model that is to be trained has rows
            chosen as `importance` says, where that needs no data and layers are chosen one by one: a saved config alone
            then starts a new training, and the tensors of an adapter bring their own ids.

    Raises:
        UserError: for a value out of range, two sizes at once, or rows or columns that the channel does not train.
    """

    rows: int | None = None
    ratio: float | None = None
    rows_pattern: dict[str, int] | None = None
    columns_pattern: dict[str, int] | None = None
    channel: str = "rows"
    importance: str = "l2"
    scope: str = "layer"
    attention: str = "linear"
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    train_bias: bool = True
    dropout: float = 0.0
    recompute_inputs: bool = True
    seed: int = 0
    init_weights: bool = True
    row_ids: Mapping[str, Sequence[int] | torch.Tensor] | None = field(default=None, repr=False, compare=False)
    column_ids: Mapping[str, Sequence[int] | torch.Tensor] | None = field(default=None, repr=False, compare=False)
    base_quantization: str | None = None
    quantised_start: str | None = None
    rows_in_checkpoint: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.ROW_SFT  # type: ignore[attr-defined]  # compat/peft.py adds it to PEFT's enumeration
        self.channel = renamed.channel(self.channel)
        self._check_types()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), (list, tuple)):
                setattr(self, name, set(getattr(self, name)))
        self._check_size()
        self._check_choices()
        self._check_targets()

    def _check_types(self) -> None:
        for name in ("rows_pattern", "columns_pattern", "row_ids", "column_ids"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, Mapping)):
                raise UserError(f"{name}={value!r} must be a mapping from full layer names")
        for name, alone in (("target_modules", True), ("exclude_modules", True), ("modules_to_save", False)):
            value = getattr(self, name)
            if not (value is None or (alone and isinstance(value, str)) or _all(value, lambda each: type(each) is str)):
                raise UserError(f"{name}={value!r} must be a list of names of modules")
        layers = self.layers_to_transform
        if not (layers is None or _is_int(layers) or _all(layers, _is_int)):
            raise UserError(f"layers_to_transform={layers!r} must be indices of layers, whole numbers")
        if not isinstance(self.recompute_inputs, bool):
            raise UserError(f"recompute_inputs={self.recompute_inputs!r} must be true or false")
        if not isinstance(self.importance, str):
            raise UserError(f"importance={self.importance!r} must be the name of a metric, such as 'l2'")

    def _check_size(self) -> None:
        if self.rows is not None and self.ratio is not None:
            raise UserError(f"rows={self.rows} and ratio={self.ratio} are both set; set one of them")
        if self.rows is not None and (not _is_int(self.rows) or self.rows < 1):
            raise UserError(f"rows={self.rows!r} must be a whole number of at least 1")
        if self.ratio is not None and not (_is_number(self.ratio) and 0 < self.ratio <= 1):
            raise UserError(f"ratio={self.ratio!r} must be a share of a layer's rows, a number in (0, 1]")
        for pattern, axis in (("rows_pattern", "row"), ("columns_pattern", "column")):
            for name, count in (getattr(self, pattern) or {}).items():
                if not _is_int(count) or count < 0:
                    raise UserError(f"{pattern}[{name!r}]={count!r} must be a whole number of {axis}s, 0 to train none")

    def _check_choices(self) -> None:
        for name, known in (("channel", tuple(CHANNELS)), ("scope", SCOPES), ("attention", ATTENTION)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is not known; choose from: {', '.join(known)}")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise UserError(f"dropout={self.dropout!r} must be a probability, a number in [0, 1)")
        for name in ("train_bias", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r} must be True or False")
        if not _is_int(self.seed):
            raise UserError(f"seed={self.seed!r} must be a whole number")
        channel = CHANNELS[self.channel]
        for axis, trained in (("row", channel.has_rows), ("column", channel.has_columns)):
            for name in (f"{axis}s_pattern", f"{axis}_ids"):
                if not trained and getattr(self, name):
                    fitting = ", ".join(key for key, each in CHANNELS.items() if getattr(each, f"has_{axis}s"))
                    raise UserError(
                        f"{name} is set, but channel={self.channel!r} trains no {axis}s; choose channel from: {fitting}"
                    )

    def _check_targets(self) -> None:
        is_expression = isinstance(self.target_modules, str) and self.target_modules.lower() != "all-linear"
        for name in ("layers_to_transform", "layers_pattern"):
            if is_expression and getattr(self, name) is not None:
                raise UserError(
                    f"{name}={getattr(self, name)!r} has no effect when target_modules is a string "
                    f"({self.target_modules!r}); list the module names, or write the layers into the regular expression"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform; set both or neither")

    def sizes_of(self, layer_name: str, d_out: int, d_in: int) -> tuple[int, int]:
        """Return how many rows and columns of one layer are trained; 0 and 0 leave it frozen.

        Raises:
            UserError: when the layer has fewer than asked for, its rows are all trained so that its columns have no
                entry left, or no size is set at all.
        """
        if self.has_no_size:
            raise UserError("no size is set; give rows, ratio, a pattern, or the ids themselves")
        rows, columns = self._uniform_sizes(d_out, d_in)
        rows = (self.rows_pattern or {}).get(layer_name, rows)
        columns = (self.columns_pattern or {}).get(layer_name, columns)
        for axis, count, most in (("rows", rows, d_out), ("columns", columns, d_in)):
            if count > most:
                raise UserError(
                    f"{axis}={count} exceeds layer {layer_name} ({most} {axis}); lower budget.rows, or set "
                    f"{axis}_pattern for it"
                )
        if columns and rows == d_out:
            raise UserError(
                f"rows={rows} are all rows of layer {layer_name}, so its columns={columns} would have no entry of "
                "their own; lower budget.rows, or set rows_pattern or columns_pattern for it"
            )
        return rows, columns

    def _uniform_sizes(self, d_out: int, d_in: int) -> tuple[int, int]:
        split = CHANNELS[self.channel].split
        if split is not None and self.rows is not None:
            return split(self.rows, self.rows)
        if split is not None and self.ratio is not None:
            return split(nearest(self.ratio, d_out), nearest(self.ratio, d_in))
        return 0, 0

    @property
    def has_no_size(self) -> bool:
        """Whether neither `rows`, `ratio` nor a pattern is given."""
        return all(getattr(self, name) is None for name in ("rows", "ratio", "rows_pattern", "columns_pattern"))

    def to_dict(self) -> dict:
        """Return the configuration as plain JSON values: sets as sorted lists, without the runtime-only ids."""
        bare = copy.copy(self)
        bare.row_ids = bare.column_ids = None
        values = super(RowSFTConfig, bare).to_dict()
        del values["row_ids"], values["column_ids"]
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Save `adapter_config.json`; only this copy says that the ids are in the checkpoint."""
        saved = copy.copy(self)
        saved.rows_in_checkpoint = True
        super(RowSFTConfig, saved).save_pretrained(save_directory, **kwargs)


def _all(values, kind) -> bool:
    return isinstance(values, Collection) and not isinstance(values, str) and all(map(kind, values))


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""What the tuner's tests share: three model families, random rows and columns, and adapters that are not zero."""

import torch
from peft import PeftModel, get_peft_model
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft import RowSFTConfig
from rowsft.tuner import RowSFTLayer

CHANNELS = ("rows", "columns", "both", "neurons")
#: Channels of two adapters side by side.
PAIRS = (
    *(("rows", "rows"), ("columns", "columns"), ("both", "both")),
    *(("rows", "columns"), ("columns", "both"), ("both", "neurons")),
)
FAMILIES = {
    "llama": (tiny_llama, causal_batch, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "bert": (tiny_bert, classification_batch, ["query", "key", "value", "intermediate.dense", "output.dense"]),
    "gpt2": (tiny_gpt2, causal_batch, ["c_attn", "c_proj", "c_fc"]),
}

#: (family, channel): every channel, and what is peculiar to a family: biases, Conv1D.
CASES = [*(("llama", channel) for channel in CHANNELS), ("bert", "both"), ("gpt2", "rows"), ("gpt2", "both")]


def family(name: str, dtype: torch.dtype = torch.float32, **overrides):
    """The model, a batch for it and the names of its usual target modules; overrides of the model's config."""
    build, batch, targets = FAMILIES[name]
    return build(dtype, **overrides), batch(), targets


def random_rows(model: nn.Module, targets: list[str], rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Full layer name -> `rows` random row ids, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(out_rows(module).shape[0], generator=generator)[:rows]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and any(name.endswith(f".{target}") for target in targets)
    }


def random_ids(
    model: nn.Module, targets: list[str], channel: str = "rows", size: int = 3, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """row_ids and column_ids as the channel's config takes them; `neurons` has rows and columns in turn."""
    rows = random_rows(model, targets, size, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    columns = {
        name: torch.randperm(out_rows(model.get_submodule(name)).shape[1], generator=generator)[: size + 1]
        for name in rows
    }
    if channel == "neurons":
        rows = dict(list(rows.items())[::2])
        columns = {name: ids for name, ids in columns.items() if name not in rows}
    given = {"rows": {"row_ids": rows}, "columns": {"column_ids": columns}}
    return given.get(channel, {"row_ids": rows, "column_ids": columns})


def others_of(rows, d_out: int) -> list[int]:
    """The rows of a layer that are not among `rows`, ascending."""
    return [row for row in range(d_out) if row not in {int(each) for each in rows}]


def row_layers(model: nn.Module) -> dict[str, RowSFTLayer]:
    """Full layer name -> adapted layer."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, RowSFTLayer)}


def layer_ids(layer: RowSFTLayer, adapter: str = "default") -> tuple[list[int], list[int]]:
    """The rows and the columns that an adapter trains in a layer, in the adapter's own order."""
    rows = layer.row_sft_ids[adapter].tolist() if adapter in layer.row_sft_ids else []
    columns = layer.row_sft_column_ids[adapter].tolist() if adapter in layer.row_sft_column_ids else []
    return rows, columns


@torch.no_grad()
def add_update(plain: nn.Module, layer: RowSFTLayer, adapter: str = "default") -> None:
    """Add an adapter's values to the plain layer's own weight and bias, entry by entry of what they mean."""
    rows, columns = layer_ids(layer, adapter)
    weight = out_rows(plain)
    if rows:
        weight[rows] += layer.row_sft_delta[adapter]
        if adapter in layer.row_sft_bias:
            plain.bias[rows] += layer.row_sft_bias[adapter]
    for position, row in enumerate(others_of(rows, len(weight)) if columns else []):
        weight[row, columns] += layer.row_sft_column_delta[adapter][position]


def chosen_entries(layer: RowSFTLayer, adapter: str = "default") -> torch.Tensor:
    """True where the adapter trains, (d_out, d_in)."""
    rows, columns = layer_ids(layer, adapter)
    mask = torch.zeros(layer.out_features, layer.in_features, dtype=torch.bool)
    mask[rows] = True
    mask[:, columns] = True
    return mask


def out_rows(layer: nn.Module, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The layer's weight (or a tensor laid out like it) as (d_out, d_in)."""
    weight = layer.weight if weight is None else weight
    return weight.t() if isinstance(layer, Conv1D) else weight


def adapt(
    model: nn.Module, targets: list[str], rows: int = 3, seed: int = 0, channel: str = "rows", **settings
) -> PeftModel:
    ids = random_ids(model, targets, channel, rows, seed)
    return get_peft_model(model, RowSFTConfig(target_modules=targets, channel=channel, **ids, **settings))


def shake(model: nn.Module, adapter: str = "default", seed: int = 7, scale: float = 0.05) -> None:
    """Give the adapter's deltas and biases random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "row_sft_" in name and name.endswith(f".{adapter}"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def train(model: nn.Module, batch: dict, steps: int = 3, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch).logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

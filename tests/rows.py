"""What the tuner's tests share: three model families, random rows, and adapters that are not zero."""

import torch
from peft import PeftModel, get_peft_model
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft import RowSFTConfig

FAMILIES = {
    "llama": (tiny_llama, causal_batch, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "bert": (tiny_bert, classification_batch, ["query", "key", "value", "intermediate.dense", "output.dense"]),
    "gpt2": (tiny_gpt2, causal_batch, ["c_attn", "c_proj", "c_fc"]),
}


def family(name: str, dtype: torch.dtype = torch.float32):
    """The model, a batch for it and the names of its usual target modules."""
    build, batch, targets = FAMILIES[name]
    return build(dtype), batch(), targets


def random_rows(model: nn.Module, targets: list[str], rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Full layer name -> `rows` random row ids, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(out_rows(module).shape[0], generator=generator)[:rows]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and any(name.endswith(f".{target}") for target in targets)
    }


def out_rows(layer: nn.Module, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The layer's weight (or a tensor laid out like it) as (d_out, d_in)."""
    weight = layer.weight if weight is None else weight
    return weight.t() if isinstance(layer, Conv1D) else weight


def adapt(model: nn.Module, targets: list[str], rows: int = 3, seed: int = 0, **settings) -> PeftModel:
    ids = random_rows(model, targets, rows, seed)
    return get_peft_model(model, RowSFTConfig(target_modules=targets, row_ids=ids, **settings))


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

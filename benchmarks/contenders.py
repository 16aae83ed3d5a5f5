"""What is timed against what: the suite's own methods at one budget, and forms that only a benchmark needs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rebuilt_lora import RebuiltLora
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from rowsft.layers.matrix import layer_shape
from rowsft.methods.base import method_class, selected
from rowsft.methods.optimizing import Optimizing
from rowsft.methods.sizes import like_parameters
from rowsft.selection.budget import Budget, fit, row_units
from rowsft.selection.targets import Targets, eligible_layers


@dataclass(frozen=True)
class Attached:
    """A model ready to train, how many of its parameters the method trains, and what it says of its steps."""

    model: nn.Module
    trainable_parameters: int
    optimizing: Optimizing = field(default_factory=Optimizing)


@dataclass(frozen=True)
class Contender:
    """What a name stands for, and how it is put on a plain model at the budget of LoRA of a given rank.

    by_default: whether step.py times it where nobody names methods.
    """

    about: str
    attach: Callable[[PreTrainedModel, int], Attached]
    by_default: bool = True


def _suite(name: str, **settings) -> Callable[[PreTrainedModel, int], Attached]:
    """A method of the suite through its own solve, select and attach."""

    def attach(model: PreTrainedModel, rank: int) -> Attached:
        method = method_class(name)(**settings)
        resolved = method.solve(_budget(rank) if method.info.budgeted else Budget(), model, Targets())
        tuned = method.attach(model, selected(method, model, resolved))
        return Attached(tuned, method.trainable(tuned)["total"], Optimizing(method))

    return attach


def _budget(rank: int) -> Budget:
    return Budget(like={"method": "lora", "r": rank})


def _floor(model: PreTrainedModel, rank: int) -> Attached:
    model.requires_grad_(False)
    # The embedding's output requires a gradient, so backward goes through every layer and ends there.
    model.enable_input_require_grads()
    return Attached(model, 0)


class SecondProduct(nn.Module):
    """The released row code's form: the frozen layer, plus a second product of the chosen rows added into its output.

    delta starts at zero here; index_add is the leanest scatter, with no one-hot matrix.
    """

    def __init__(self, base_layer: nn.Linear, ids: torch.Tensor):
        super().__init__()
        self.base_layer = base_layer
        weight = base_layer.weight
        self.register_buffer("ids", ids.to(weight.device))
        self.delta = nn.Parameter(torch.zeros(len(ids), weight.shape[1], dtype=torch.float32, device=weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base_layer(x)
        return y.index_add(-1, self.ids, functional.linear(x, self.delta.to(x.dtype)))


def _released(model: PreTrainedModel, rank: int) -> Attached:
    layers = eligible_layers(model, Targets())
    params = like_parameters({"method": "lora", "r": rank}, "benchmark", False, model, Targets())
    counts = fit(row_units(layers, train_bias=False), params, clip=False, source="benchmark")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, layer in layers.items():
        ids = torch.randperm(layer_shape(layer)[0], generator=generator)[: counts[name]].sort().values
        model.set_submodule(name, SecondProduct(layer, ids))
    return Attached(model, sum(p.numel() for p in model.parameters() if p.requires_grad))


def _rebuilt_lora(model: PreTrainedModel, rank: int) -> Attached:
    model.requires_grad_(False)
    for name, layer in eligible_layers(model, Targets()).items():
        model.set_submodule(name, RebuiltLora(layer, rank))
    return Attached(model, sum(p.numel() for p in model.parameters() if p.requires_grad))


def _dense_mask(model: PreTrainedModel, rank: int) -> Attached:
    model.requires_grad_(False)
    chosen = 0
    for layer in eligible_layers(model, Targets()).values():
        count = rank * sum(layer_shape(layer))
        generator = torch.Generator().manual_seed(0)
        mask = torch.zeros(layer.weight.numel(), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[:count]] = True
        layer.register_buffer("chosen", mask.view_as(layer.weight).to(layer.weight.device), persistent=False)
        layer.weight.requires_grad_(True).register_hook(_masking(layer.chosen))
        chosen += int(mask.sum())
    return Attached(model, chosen)


def _masking(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient * mask


# Which rows are chosen changes neither bytes nor time; the others train no biases.
_ROWS = {"importance": "random", "train_bias": False}

CONTENDERS = {
    "floor": Contender("backward through the frozen network, nothing trained, no optimizer", _floor),
    "rows": Contender("row-SFT, channel rows, inputs computed again in backward", _suite("row_sft", **_ROWS)),
    "rows_kept": Contender("the same with every input kept", _suite("row_sft", recompute_inputs=False, **_ROWS)),
    "columns": Contender("row-SFT, channel columns, at random: PaCA", _suite("row_sft", channel="columns", **_ROWS)),
    "both": Contender("row-SFT, channel both", _suite("row_sft", channel="both", **_ROWS), by_default=False),
    "neurons": Contender("row-SFT, channel neurons", _suite("row_sft", channel="neurons", **_ROWS)),
    "lora": Contender("LoRA (PEFT)", _suite("lora")),
    "lora_plus": Contender("LoRA+ (PEFT): LoRA in groups with rates of their own", _suite("lora_plus")),
    "lora_fa": Contender("LoRA-FA (PEFT and its optimizer): B alone, of a higher rank", _suite("lora_fa")),
    "adalora": Contender("AdaLoRA (PEFT), a step on which nothing is cut", _suite("adalora")),
    "lora_rebuilt": Contender("LoRA written anew, with its inputs computed again in backward", _rebuilt_lora),
    "rslora": Contender("rsLoRA (PEFT)", _suite("rslora")),
    "pissa": Contender("PiSSA (PEFT)", _suite("pissa")),
    "olora": Contender("OLoRA (PEFT)", _suite("olora")),
    "cla": Contender("LoRA with A fixed (PEFT)", _suite("cla")),
    "dora": Contender("DoRA (PEFT)", _suite("dora")),
    "hira": Contender("HiRA (PEFT)", _suite("hira")),
    "miss": Contender("MiSS (PEFT)", _suite("miss")),
    "oft": Contender("OFT (PEFT)", _suite("oft")),
    "shira": Contender("SHiRA (PEFT)", _suite("shira")),
    "supertuning": Contender("Super-Tuning (PEFT)", _suite("supertuning"), by_default=False),
    "vera": Contender("VeRA (PEFT), r = 256: of a size of its own", _suite("vera"), by_default=False),
    "ia3": Contender("IA3 (PEFT): of a size of its own", _suite("ia3"), by_default=False),
    "bitfit": Contender("BitFit: of a size of its own, where the model has biases", _suite("bitfit"), by_default=False),
    "ln_tuning": Contender("LN-tuning (PEFT): of a size of its own", _suite("ln_tuning"), by_default=False),
    "entries": Contender(
        "the entries of every row with the largest weights (PEFT's SHiRA)",
        _suite("entries", per="row"),
        by_default=False,
    ),
    "dense_mask": Contender(
        "sparse fine-tuning by a mask: the full weight gradient times a 0/1 mask of random entries; AdamW's state is "
        "dense too",
        _dense_mask,
    ),
    "released": Contender(
        "the released row code's form, written anew: a second product of the chosen rows, added into the output",
        _released,
    ),
    "full": Contender("full fine-tuning, embeddings included", _suite("full")),
    "lisa": Contender("LISA: full fine-tuning, one block and all that is in none at a time", _suite("lisa", blocks=1)),
    "galore": Contender(
        "GaLore: full fine-tuning, AdamW's state of a projection to rank 8; a step without a decomposition",
        _suite("galore", rank=8),
    ),
}

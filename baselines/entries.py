"""Single entries of W by a choice of one's own, carried by PEFT's SHiRA: the unstructured masks of other papers.

NeuroAda (Zhang et al., arXiv 2510.18940): the largest of every row. GPS (Zhang et al., arXiv 2312.10136): those of
every row with the largest gradients. SpaRTA (Rios et al., arXiv 2502.15975): any at random. LIFT (Liu et al., arXiv
2506.00772): the largest after rank reduction. RoSA (Nikdan et al., arXiv 2401.04679): its mask, by gradients, without
its LoRA half. What each preset leaves out stands in its YAML.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel, ShiraConfig
from peft.tuners.shira import ShiraLayer
from torch import Tensor, nn

from rowsft.baselines.shira import Shira
from rowsft.errors import UserError
from rowsft.importance import Calibration, Context, layer_generator
from rowsft.importance.gradient import mean_gradients
from rowsft.importance.low_rank import check_rank, factors
from rowsft.importance.reduction import weight_of, wide
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.progress import bar
from rowsft.selection.entries import PER, chosen_entries, fingerprint
from rowsft.selection.groups import Scores

CHOICES = ("random", "magnitude", "lift", "gradient")
# What is trained is kept in 32 bit, and so are AdamW's two averages.
_BYTES_OF_A_PARAMETER = 12


@dataclass
class Entries(Shira):
    """r (d_in + d_out) entries of W in every layer, by their sizes. Keys: conf/method/entries.yaml.

    A reference and not a fast method: PEFT adds the entries to a copy of W in every forward, and backward forms the
    whole gradient of W.
    """

    info: ClassVar[MethodInfo] = replace(Shira.info, name="entries", title="entries", order=56, colour=None, marker="*")

    name: str = info.name
    choice: str = "magnitude"
    per: str = "matrix"
    rank: int = 128

    def __post_init__(self) -> None:
        for setting, known in (("choice", CHOICES), ("per", PER)):
            if getattr(self, setting) not in known:
                raise UserError(f"method.{setting}={getattr(self, setting)}: unknown; use one of {', '.join(known)}")
        check_rank(self.rank, f"method={self.name}")
        self.needs_calibration = self.choice == "gradient"

    @property
    def importance(self) -> str:
        """What the entries are chosen by."""
        return self.choice

    def values(self, common: int, pattern: dict[str, int]) -> dict[str, Any]:
        """SHiRA's one r, and how its entries are chosen."""
        return {**super().values(common, pattern), "choice": self.choice, "per": self.per}

    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """See `CalibratedMethod`. A choice by gradients is kept where the calibration has a cache."""
        if not (self.needs_calibration and isinstance(calibration, Calibration)):
            return replace(resolved, entries=self._entries(model, resolved, calibration))
        # What determines the choice besides model and batches.
        request = {"entries": self.choice, "per": self.per, "r": resolved.values["r"]}
        request |= {"layers": sorted(resolved.values["target_modules"])}

        def compute() -> Scores:
            ids = self._entries(model, resolved, calibration)
            return cast(Scores, {name: {"entries": each} for name, each in ids.items()})

        kept: Any = calibration.cached(request, compute)
        return replace(resolved, entries={name: kept[name]["entries"] for name in resolved.values["target_modules"]})

    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """See `CalibratedMethod`: whatever is chosen, there is as much of it."""
        counts = self._counts(model, resolved)
        return {"": replace(resolved, entries={name: torch.arange(count) for name, count in counts.items()})}

    def scores(
        self,
        model: nn.Module,
        resolved: ResolvedMethod,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        """Go through what `select` does; entries have no scores that could be kept together."""
        self._entries(model, resolved, calibration, progress)
        return {}

    def _counts(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, int]:
        return {
            name: resolved.values["r"] * sum(layer_shape(layer)) for name, layer in _layers(model, resolved).items()
        }

    def _entries(
        self,
        model: nn.Module,
        resolved: ResolvedMethod,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> dict[str, Tensor]:
        """Layer name -> flat ids, ascending, of its chosen entries, on the CPU."""
        layers, counts = _layers(model, resolved), self._counts(model, resolved)
        progress = progress or bar(f"choosing entries by {self.choice}")
        if not self.needs_calibration:
            return {
                name: chosen_entries(self._sizes(name, layer), counts[name], self.per, name)
                for name, layer in progress(layers.items(), len(layers))
            }
        if not calibration:
            raise UserError(f"method.choice={self.choice} needs training batches and calibration is empty")
        for name, layer in layers.items():
            if not layer.weight.is_floating_point():
                raise UserError(
                    f"method.choice={self.choice}: layer {name} holds {layer.weight.dtype} values (quantised), which "
                    "have no gradient; use choice magnitude, lift or random"
                )
        step_bytes = _BYTES_OF_A_PARAMETER * (resolved.achieved or 0)
        context = Context(model, calibration, self.seed, progress=progress, step_bytes=step_bytes)
        ids = {}
        for group, gradients in mean_gradients(layers, context):
            for name, layer in group.items():
                sizes = gradients.pop(layer.weight).abs_()
                ids[layer.weight] = chosen_entries(sizes, counts[name], self.per, name)
                del sizes
        return {name: ids[layer.weight] for name, layer in layers.items()}

    def _sizes(self, name: str, layer: LinearLayer) -> Tensor:
        """What the entries (d_out, d_in) of a layer are ranked by, where that reads no data."""
        if self.choice == "random":
            generator = layer_generator(self.seed, f"{name} entries")
            return torch.rand(layer_shape(layer), generator=generator, device="cpu")
        weight = weight_of(layer)
        if self.choice == "magnitude":
            return weight.to(wide(weight.dtype), copy=True).abs_()
        left, right = factors(weight, self.rank)
        return (left @ right.T).abs_()

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> ShiraConfig:
        """SHiRA's configuration with the chosen entries as its mask."""
        assert resolved.entries is not None, "`select` comes first"
        config: Any = ShiraConfig(r=resolved.values["r"], random_seed=self.seed)
        # Who makes an adapter anew from the saved configuration is not to get SHiRA's random mask without a word.
        config.mask_type = "entries"
        config.mask_fn = _mask_of({model.get_submodule(name): ids for name, ids in resolved.entries.items()})
        return config

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`. A buffer of each layer tells choices apart: a run goes on with its own alone."""
        wrapped = super().attach(model, resolved)
        for layer in wrapped.modules():
            if isinstance(layer, ShiraLayer):
                marks = fingerprint(layer.shira_indices[wrapped.active_adapter])
                cast(nn.Module, layer).register_buffer("entries_fingerprint", marks, persistent=False)
        return wrapped


def _layers(model: nn.Module, resolved: ResolvedMethod) -> dict[str, LinearLayer]:
    return {name: cast(LinearLayer, model.get_submodule(name)) for name in resolved.values["target_modules"]}


def _mask_of(chosen: Mapping[nn.Module, Tensor]) -> Callable[..., Tensor]:
    """`ShiraConfig.mask_fn` that gives each layer its entries."""

    def mask(base_layer: nn.Linear, r: int, **kwargs: object) -> Tensor:
        d_out, d_in = layer_shape(base_layer)
        device = base_layer.weight.device
        flat = torch.zeros(d_out * d_in, dtype=torch.bool, device=device)
        flat[chosen[base_layer].to(device)] = True
        return flat.view(d_out, d_in)

    return mask


METHOD: type[Method] = Entries

"""Model and processor from a package, a local folder or the hub: one code path once the source is resolved."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from rowsft.assets import fetch
from rowsft.compat.hub import where_reachable
from rowsft.compat.transformers import attention_of, commit_of
from rowsft.errors import UserError
from rowsft.layers.quantised import keep_layout
from rowsft.models.capacity import counts_from_padding
from rowsft.models.options import attention_kernel, check_dtype, check_kind, configure, dtype_of, model_class
from rowsft.models.originals import OriginalWeights, remember
from rowsft.models.processor import check_filled, processor_of
from rowsft.models.quantising import check_quantize, quantise
from rowsft.models.source import local_revision, readable, resolve
from rowsft.selection.targets import Targets
from rowsft.tasks.heads import Head


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its processor, the revision of the weights, and facts for the record."""

    model: PreTrainedModel
    processor: Any
    revision: str
    facts: dict[str, Any]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The processor where it is a tokenizer, with a pad token if it has any to take."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None


def load(
    model_cfg: Mapping[str, Any], head: Head, head_settings: Mapping[str, Any] | None = None, seed: int = 0
) -> Loaded:
    """Load what `model_cfg` (conf/model/*.yaml) describes with the head that the task asks for.

    `head_settings`, such as num_labels, are put into the model's configuration. Weights that the checkpoint lacks are
    drawn from `seed` alone, and the global random stream is left as it was; they may only belong to the task head,
    unless `pretrained` is false: then all are drawn.
    With `quantize` its linear layers are packed one by one, on the CPU; the unpacked model is held there before.
    Raises UserError for a source that cannot be read, for a checkpoint that does not fit the head, and for a model that
    cannot be quantised.
    """
    source, quantize = str(model_cfg["source"]), check_quantize(model_cfg)
    dtype = dtype_of(model_cfg.get("dtype"))
    place, options = resolve(source, model_cfg)
    if "revision" in options:
        options = where_reachable(options)
    with readable(source):
        config = AutoConfig.from_pretrained(place, **options)
        # One commit for configuration, weights and tokenizer, even if the branch moves in between.
        commit = commit_of(config)
        if commit:
            options["revision"] = commit
        processor = processor_of(head, place, options)
    check_kind(source, config, head)
    check_dtype(config, dtype)
    check_filled(processor, source)
    configure(config, head_settings)
    with readable(source), _own_random_stream(seed), attention_kernel(model_cfg):
        kernel = model_cfg.get("attn_implementation")
        if model_cfg.get("pretrained", True):
            model, loading = model_class(head).from_pretrained(
                place,
                config=config,
                dtype=dtype,
                attn_implementation=kernel,
                ignore_mismatched_sizes=head.fresh,
                output_loading_info=True,
                **options,
            )
            new_weights = sorted({*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])})
            _check_new_weights(new_weights, head_modules(model_cfg, head), source, head)
        else:
            kind = (config.dtype or torch.float32) if dtype == "auto" else dtype
            chosen = {} if kernel is None else {"attn_implementation": kernel}
            trusted = options["trust_remote_code"]
            model = model_class(head).from_config(config, dtype=kind, trust_remote_code=trusted, **chosen)
            new_weights = ["all"]
    if isinstance(processor, PreTrainedTokenizerBase):
        _match(model, processor)
    revision = commit or local_revision(source)
    facts = _facts(model, source, revision, new_weights)
    if quantize is not None:
        facts["quantized_layers"] = len(quantise(model, quantize, model_cfg.get("head_modules") or [], source))

        def plain() -> PreTrainedModel:
            return load({**model_cfg, "quantize": None}, head, head_settings, seed).model

        drawn = not model_cfg.get("pretrained", True)
        remember(model, OriginalWeights(quantize, None if drawn else place, options.get("revision"), plain))
    keep_layout(model)
    return Loaded(model.eval(), processor, revision, facts)


def recompute_activations(model: PreTrainedModel) -> None:
    """Turn gradient checkpointing on. Raises UserError for a model that cannot do it."""
    try:
        # Not through TrainingArguments, whose names for it are changing.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"trainer.gradient_checkpointing=true: {error} Set it to false") from error


def head_modules(model_cfg: Mapping[str, Any], head: Head) -> list[str]:
    """Names of the modules that form the task head: trained in full by every method; none where it is not fresh."""
    return list(model_cfg.get("head_modules") or []) if head.fresh else []


def targets_of(model_cfg: Mapping[str, Any], head: Head) -> Targets:
    """Which layers of a model every method adapts, and which modules are its task head."""
    return Targets(
        target_modules=model_cfg["target_modules"],
        exclude_modules=model_cfg.get("exclude_modules"),
        layers_to_transform=model_cfg.get("layers_to_transform"),
        head_modules=head_modules(model_cfg, head),
    )


@contextmanager
def _own_random_stream(seed: int) -> Iterator[None]:
    # The CPU generator alone: seeding all of torch would also touch a GPU's stream.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_new_weights(new_weights: list[str], allowed: list[str], source: str, head: Head) -> None:
    stray = [name for name in new_weights if not set(allowed) & set(name.split("."))]
    if stray:
        expected = f"only {', '.join(allowed)} may be new" if allowed else "all of them are needed"
        raise UserError(
            f"model.source={source}: the checkpoint lacks {len(stray)} weights of a {head.name} model ({stray[0]}, "
            f"...); {expected}; choose a checkpoint or a task that fits, or name the head in model.head_modules"
        )


def _match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model which token is padding, and the tokenizer whether the model takes token types.

    A model that counts positions from its padding keeps its own: saved with another, it would count otherwise.
    """
    if tokenizer.pad_token_id is not None and not counts_from_padding(model):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    types = getattr(model.config.get_text_config(), "type_vocab_size", None)
    named = "token_type_ids" in inspect.signature(model.forward).parameters
    # Without a table of types in its configuration, a model that takes them (XLNet) has what its tokenizer's file says.
    if not named or types is not None:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = [*names, "token_type_ids"] if named and types and types > 1 else names


def _facts(model: PreTrainedModel, source: str, revision: str, new_weights: list[str]) -> dict[str, Any]:
    facts = {
        "source": source,
        "revision": revision,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": attention_of(model.config),
        "new_weights": new_weights,
    }
    if source.startswith("package:"):
        facts |= {key: value for key, value in fetch.about(source.removeprefix("package:")).items() if key != "source"}
    return facts

"""Model and tokenizer from a package, a local folder or the hub: one code path once the source is resolved."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from rowsft.assets import fetch
from rowsft.errors import UserError, shortened
from rowsft.layers.quantised import keep_layout
from rowsft.models.capacity import counts_from_padding
from rowsft.models.hub import without_waiting
from rowsft.selection.targets import Targets
from rowsft.store.attempt import state_of

Head = Literal["causal_lm", "sequence_classification"]
_CLASSES = {"causal_lm": AutoModelForCausalLM, "sequence_classification": AutoModelForSequenceClassification}
_DTYPES = ("float32", "bfloat16", "float16")
SHIPPED_CONFIGS = Path(__file__).parent / "configs"
# What a configuration has to say before a model can be built from it.
_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
# Said, too, where the class does not work them out of the others.
_USUAL_SIZES = ("num_attention_heads", "intermediate_size", "ffn_dim", "hidden_dim")
_NO_MODEL = (ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its tokenizer (with a pad token), the revision of the weights, and facts for the record."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    facts: dict[str, Any]


def load(
    model_cfg: Mapping[str, Any],
    head: Head,
    num_labels: int | None = None,
    problem_type: str | None = None,
    seed: int = 0,
) -> Loaded:
    """Load what `model_cfg` (conf/model/*.yaml) describes with the head that the task asks for.

    `num_labels` and `problem_type` configure a classification head. Weights that the checkpoint lacks are drawn from
    `seed` alone, and the global random stream is left as it was; they may only belong to the task head. Raises
    UserError for a source that cannot be read and for a checkpoint that does not fit the head.
    """
    source = str(model_cfg["source"])
    dtype = _dtype(model_cfg.get("dtype"))
    place, options = _resolve(source, model_cfg)
    with _readable(source):
        config = AutoConfig.from_pretrained(place, **options)
        # One commit for configuration, weights and tokenizer, even if the branch moves in between.
        commit = getattr(config, "_commit_hash", None)
        if commit:
            options["revision"] = commit
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        # Settings that cannot be (a length that is no number) show at the first text.
        tokenizer("a")
    _check_kind(source, config)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise UserError(
            f"model.source={source}: its tokenizer knows only its {len(tokenizer)} special tokens, so its files are "
            "missing; save the tokenizer into the same folder"
        )
    if head == "sequence_classification":
        config.num_labels = num_labels
        config.problem_type = problem_type
    with _readable(source), _own_random_stream(seed), _attention(model_cfg):
        model, loading = _CLASSES[head].from_pretrained(
            place,
            config=config,
            dtype=dtype,
            attn_implementation=model_cfg.get("attn_implementation"),
            ignore_mismatched_sizes=head == "sequence_classification",
            output_loading_info=True,
            **options,
        )
    new_weights = sorted({*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])})
    _check_new_weights(new_weights, head_modules(model_cfg, head), source, head)
    keep_layout(model)
    _set_padding(model, tokenizer)
    revision = commit or _local_revision(source)
    facts = _facts(model, source, revision, new_weights)
    return Loaded(model.eval(), tokenizer, revision, facts)


def skeleton(model_cfg: Mapping[str, Any], head: Head, num_labels: int | None = None) -> PreTrainedModel:
    """The model that `load` would give, on the meta device: names and shapes, no weights read.

    num_labels: of a classification head; None takes the configuration's own. Raises UserError for a source that cannot
    be read.
    """
    source = str(model_cfg["source"])
    place, options = _resolve(source, model_cfg)
    with _readable(source):
        config = AutoConfig.from_pretrained(place, **options)
    if num_labels is not None:
        config.num_labels = num_labels
    with torch.device("meta"):
        return _CLASSES[head].from_config(config, trust_remote_code=options["trust_remote_code"])


def blueprint(
    model_cfg: Mapping[str, Any], head: Head, num_labels: int | None = None, problem_type: str | None = None
) -> PreTrainedModel:
    """`skeleton` in the dtype and with the attention kernel of `model_cfg`, and without a network where it can be.

    Configurations of the models in conf/model that a licence or a network stands before come along with the package
    (`SHIPPED_CONFIGS`). Raises UserError for a source that cannot be read and a configuration without sizes.
    """
    source = str(model_cfg["source"])
    shipped = SHIPPED_CONFIGS / f"{re.sub('[:/]', '--', source)}.json"
    trusted = bool(model_cfg.get("trust_remote_code", False))
    with _sensible(source), _readable(source):
        if shipped.is_file():
            given = json.loads(shipped.read_text())
            config = AutoConfig.for_model(**given)
        else:
            place, options = _resolve(source, model_cfg)
            if "revision" in options:
                options = without_waiting(options)
            given, _ = PretrainedConfig.get_config_dict(place, **options)
            config = AutoConfig.from_pretrained(place, **options)
    _check_kind(source, config)
    _check_sizes(source, config, {**given, **given.get("text_config", {})})
    if head == "sequence_classification":
        config.num_labels = num_labels
        config.problem_type = problem_type
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = 0
    dtype = _dtype(model_cfg.get("dtype"))
    kernel = model_cfg.get("attn_implementation")
    options = {} if kernel is None else {"attn_implementation": kernel}
    with _sensible(source), torch.device("meta"), _attention(model_cfg):
        return _CLASSES[head].from_config(
            config,
            dtype=(config.dtype or torch.float32) if dtype == "auto" else dtype,
            trust_remote_code=trusted,
            **options,
        )


def recompute_activations(model: PreTrainedModel) -> None:
    """Turn gradient checkpointing on. Raises UserError for a model that cannot do it."""
    try:
        # Not through TrainingArguments, whose names for it are changing.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"trainer.gradient_checkpointing=true: {error} Set it to false") from error


def head_modules(model_cfg: Mapping[str, Any], head: Head) -> list[str]:
    """Names of the modules that form the task head: trained in full by every method; none for a language model."""
    return list(model_cfg.get("head_modules") or []) if head == "sequence_classification" else []


def targets_of(model_cfg: Mapping[str, Any], head: Head) -> Targets:
    """Which layers of a model every method adapts, and which modules are its task head."""
    return Targets(
        target_modules=model_cfg["target_modules"],
        exclude_modules=model_cfg.get("exclude_modules"),
        layers_to_transform=model_cfg.get("layers_to_transform"),
        head_modules=head_modules(model_cfg, head),
    )


def _import_module(name: str | None) -> None:
    """Import the user's module that registers what the model needs. Raises UserError where that fails."""
    if name is None:
        return
    try:
        import_module(name)
    except Exception as error:
        raise UserError(
            f"model.module={name}: cannot be imported ({shortened(error, 200)}); expected a module beside conf/, or an "
            "installed one"
        ) from error


def _resolve(source: str, model_cfg: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What to hand to from_pretrained: a folder or hub id, and the options that all its calls share."""
    _import_module(model_cfg.get("module"))
    options: dict[str, Any] = {"trust_remote_code": bool(model_cfg.get("trust_remote_code", False))}
    if source.startswith("package:"):
        return str(fetch.fetch(source.removeprefix("package:"))), options
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.source={source}: no config.json in this folder; expected a saved transformers checkpoint"
            )
        return str(folder), options
    if source.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(source):
        raise UserError(
            f"model.source={source}: no such folder; expected package:<name>, an existing folder or a hub id "
            f"like org/name"
        )
    return source, {**options, "revision": model_cfg.get("revision") or "main"}


@contextmanager
def _readable(source: str):
    """Turn what transformers raises for gated, missing or unreachable repositories into one UserError."""
    try:
        # What it warns of beforehand is in the error, or concerns its own callers.
        with _no_load_report():
            yield
    except UserError:
        raise
    except Exception as error:
        if state_of(error) == "oom":
            raise
        # A folder's files may hold anything; KeyError, TypeError and the tokenizers' own bare Exception come up, too.
        first = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if source.startswith("package:") or Path(source).expanduser().is_dir():
            raise UserError(f"model.source={source}: cannot be loaded ({first}); check the folder's files") from error
        if isinstance(error, ImportError) or "sentencepiece" in str(error) or "tiktoken" in str(error):
            raise UserError(
                f"model.source={source}: {first}; install the hub extra: pip install 'rowsft[hub]'"
            ) from error
        raise UserError(
            f"model.source={source}: cannot be loaded from the hub ({first}); if it is gated, accept its licence at "
            f"https://huggingface.co/{source} and run hf auth login; without a network, set model.source=/local/folder"
        ) from error


@contextmanager
def _sensible(source: str):
    """Turn what transformers and torch raise for values that no model can have into one UserError."""
    try:
        yield
    except UserError:
        raise
    except _NO_MODEL as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.source={source}: no model of the task's kind can be made from its configuration "
            f"({type(error).__name__}: {first}); check its config.json"
        ) from error


def _check_sizes(source: str, config: PretrainedConfig, said: Mapping[str, Any]) -> None:
    """Raise UserError for sizes that the configuration leaves open, or that do not go together."""
    text = config.get_text_config()
    # A class has sizes of its own for whatever is left out: they would be made up.
    fixed = [name for name in _USUAL_SIZES if isinstance(getattr(type(text), name, None), int)]
    other_names = text.attribute_map
    missing = [name for name in (*_SIZES, *fixed) if name not in said and other_names.get(name) not in said]
    if missing:
        raise UserError(
            f"model.source={source}: its configuration ({config.model_type}) does not say {', '.join(missing)}; a plan "
            "needs the sizes, so give a folder or repository with a whole config.json"
        )
    if said.get("quantization_config"):
        raise UserError(
            f"model.source={source}: its weights are quantised, and a plan cannot tell their size; measure it with "
            "rowsft run trainer.steps=3"
        )
    heads, shared = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise UserError(
            f"model.source={source}: num_attention_heads={heads} is no multiple of num_key_value_heads={shared}; "
            "check its config.json"
        )


def _check_kind(source: str, config: PretrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.source={source}: encoder-decoder models ({config.model_type}) are not supported; choose an encoder "
            "or a causal language model"
        )


def _dtype(name: str | None) -> torch.dtype | str:
    if name is None:
        return "auto"
    if name not in _DTYPES:
        raise UserError(f"model.dtype={name}: expected {', '.join(_DTYPES)}, or null for the checkpoint's own")
    return getattr(torch, name)


@contextmanager
def _attention(model_cfg: Mapping[str, Any]):
    """Blame the attention kernel, not the checkpoint, where transformers refuses it."""
    kernel = model_cfg.get("attn_implementation")
    try:
        yield
    except (ValueError, ImportError) as error:
        said = str(error)
        # Spelled as the setting is, or FlashAttention2.
        named = kernel and kernel.replace("_", "") in said.lower().replace("_", "")
        if kernel and (named or "attn_implementation" in said or "attention implementation" in said):
            first = " ".join(said.split())[:200]
            raise UserError(
                f"model.attn_implementation={kernel}: cannot be used here ({first}); expected sdpa or eager, "
                "flash_attention_2 where it is installed, or null to let transformers choose"
            ) from error
        raise


@contextmanager
def _own_random_stream(seed: int):
    # The CPU generator alone: seeding all of torch would also touch a GPU's stream.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _no_load_report():
    # Its warnings, and its table of missing weights: those are checked below and recorded as facts.
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_new_weights(new_weights: list[str], allowed: list[str], source: str, head: Head) -> None:
    stray = [name for name in new_weights if not set(allowed) & set(name.split("."))]
    if stray:
        expected = f"only {', '.join(allowed)} may be new" if allowed else "all of them are needed"
        raise UserError(
            f"model.source={source}: the checkpoint lacks {len(stray)} weights of a {head} model ({stray[0]}, ...); "
            f"{expected}; choose a checkpoint or a task that fits, or name the head in model.head_modules"
        )


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token if it has none (padding is masked everywhere) and tell the model about it.

    A model that counts positions from its padding keeps its own: saved with another, it would count otherwise.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    # A tokenizer with neither is refused where texts are put into batches: capacity.check_padding.
    if tokenizer.pad_token_id is not None and not counts_from_padding(model):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _local_revision(source: str) -> str:
    if source.startswith("package:"):
        asset = fetch.get(source.removeprefix("package:"))
        return f"{asset.package}=={asset.version}"
    return "sha256:" + _fingerprint(Path(source).expanduser())


def _fingerprint(folder: Path) -> str:
    """sha256 over config.json and, of every weight file, name, size, first and last MiB: enough to tell two apart.

    Reading all of a 7B checkpoint would take longer than loading it.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()


def _facts(model: PreTrainedModel, source: str, revision: str, new_weights: list[str]) -> dict[str, Any]:
    facts = {
        "source": source,
        "revision": revision,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "new_weights": new_weights,
    }
    if source.startswith("package:"):
        facts |= {key: value for key, value in fetch.about(source.removeprefix("package:")).items() if key != "source"}
    return facts

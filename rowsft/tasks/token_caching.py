"""What encoded examples depend on, as a key of the store's cache: the task's settings, code, tokenizer and content."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rowsft.store.token_cache import TokenCache

# Fewer are tokenised in less than a second; a large tokenizer's digest alone takes half of one.
FEWEST = 2000
# Of a tokenizer, what says where it comes from.
_PLACES = ("name_or_path", "vocab_file", "merges_file")


def kept(
    tokens: TokenCache | None,
    task: Any,
    processor: Any,
    examples: Sequence[dict],
    what: str,
    make: Callable[[], list[dict]],
) -> list[dict]:
    """What `make` returns for these examples, from the cache where it is there; put there where it may be kept.

    what: a name for what `make` computes of task, processor and examples.
    """
    key = None if tokens is None else key_of(task, processor, examples, what)
    if tokens is None or key is None:
        return make()
    found = tokens.get(key)
    if found is None:
        found = make()
        tokens.put(key, found)
    return found


def key_of(task: Any, processor: Any, examples: Sequence[dict], what: str) -> dict | None:
    """All that the result depends on; None where that cannot be told, or where keeping it would not pay.

    Tasks that lie outside of this package, tokenizers that bring code of their own or have none in Rust, and examples
    that are no JSON are encoded anew each time.
    """
    if len(examples) < FEWEST:
        return None
    settings, state = settings_of(task), tokenizer_state(processor)
    if settings is None or state is None:
        return None
    try:
        content = json.dumps(examples)
    except (TypeError, ValueError):
        return None
    return {
        "what": what,
        "task": settings,
        "code": _code(),
        "tokenizer": state,
        "versions": [version("transformers"), version("tokenizers")],
        "examples": hashlib.sha256(content.encode()).hexdigest(),
    }


def tokenizer_state(processor: Any) -> str | None:
    """A digest of what determines a tokenizer's output, wherever its files lie; None for what is no such tokenizer."""
    backend = getattr(processor, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not type(processor).__module__.startswith("transformers."):
        return None
    try:
        rules = json.loads(backend.to_str())
    except Exception:
        # tokenizers raises no other: a part of it is written in Python.
        return None
    if rules["model"].get("dropout"):
        # Every call draws other tokens.
        return None
    # As the last call had them; every call sets them anew.
    del rules["truncation"], rules["padding"]
    own = {
        name: value
        for name, value in vars(processor).items()
        if name not in _PLACES and isinstance(value, str | int | float | None)
    }
    names = [type(processor).__qualname__, processor.special_tokens_map, processor.model_input_names, own]
    return hashlib.sha256(json.dumps([names, rules], sort_keys=True, default=str).encode()).hexdigest()


def settings_of(task: Any) -> list | None:
    """Class and settings of a task of this package; None for another, and for one that has nothing kept."""
    if not type(task).__module__.startswith(f"{__package__}.") or not hasattr(task, "encoding_settings"):
        return None
    settings = task.encoding_settings()
    return None if settings is None else [type(task).__qualname__, settings]


@cache
def _code() -> str:
    """A digest of the code that encodes: a change of it must not find what the code before it made."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()

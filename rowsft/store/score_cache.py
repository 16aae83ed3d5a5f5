"""Importance scores kept in the store, so that a sweep over budgets scores once: `<store>/scores/<hash>.safetensors`.

Imports torch only where scores are read or written.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rowsft.output import redact
from rowsft.store.files import explained, write_atomic
from rowsft.store.identity import RESULTS_VERSION

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class ScoreCache:
    """Scores by what determines them. A file is whole or absent: processes may read and write one key at once."""

    def __init__(self, store: str | Path):
        self.folder = Path(store) / "scores"

    def path(self, key: dict) -> Path:
        """Where scores of `key` (JSON-able) are kept; a new results version has places of its own."""
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:24]}.safetensors"

    def get(self, key: dict) -> "dict[str, dict[str, Tensor]] | None":
        """Return the scores put for `key`, layer name -> axis -> tensor; None for none or a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(key)
        try:
            # The bytes are read once: safe_open opens the path twice, and between the two another process may replace
            # the file by one of another size.
            content = path.read_bytes()
            tensors = load(content)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s); scored again", path, error)
            return None
        if _key(content) != _text(key):
            log.warning("%s holds scores of something else; scored again", path)
            return None
        scores: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, axis = name.rpartition("/")
            scores.setdefault(layer, {})[axis] = tensor
        return scores

    def put(self, key: dict, scores: "Mapping[str, Mapping[str, Tensor]]") -> None:
        """Keep `scores`, in place of what stood there. Raises UserError when the folder is full or not writable."""
        from safetensors.torch import save

        tensors = {f"{name}/{axis}": t.contiguous() for name, axes in scores.items() for axis, t in axes.items()}
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path(key), save(tensors, metadata={"key": _text(key)}))


def _key(content: bytes) -> str | None:
    """The key in the header of a safetensors file: eight bytes of the header's length, then the header in JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {}).get("key")


def _text(key: dict) -> str:
    whole = {"results_version": RESULTS_VERSION, **redact.config(key)}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

"""What a saved row-SFT adapter trains: the ids of rows and columns of every layer, read without torch."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS = "adapter_model.safetensors"
_IDS = re.compile(r"(?:base_model\.model\.)?(.+)\.row_sft_((?:column_)?ids)")
#: (layer, "ids" of rows or "column_ids") -> ids
Selection = dict[tuple[str, str], set[int]]


def chosen_ids(adapter: Path) -> Selection | None:
    """Return the ids of an adapter's folder; None where it holds no readable row-SFT adapter that trains any."""
    try:
        with safe_open(adapter / WEIGHTS, framework="numpy") as tensors:
            ids = {
                (match[1], match[2]): set(tensors.get_tensor(match[0]).tolist())
                for match in map(_IDS.fullmatch, tensors.keys())
                if match
            }
    # TypeError: ids that are no list.
    except (OSError, SafetensorError, TypeError):
        return None
    return ids if any(ids.values()) else None

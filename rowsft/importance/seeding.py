"""Random numbers of a layer's own."""

import hashlib

import torch


def layer_generator(seed: int, layer_name: str) -> torch.Generator:
    """Return a CPU generator seeded by `seed` and the layer's full name: layers draw independently, in any order."""
    digest = hashlib.sha256(f"{seed}:{layer_name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

"""What `make gpu` has to know before it begins, as JSON: the card, versions, the code's commit and its digest."""

import hashlib
import importlib.util
import json
import re

import torch
from gpu_stages import ROOT

from rowsft.measure import collect

#: What stages may need beside the packages that every one of them needs.
MODULES = ("hydra", "omegaconf", "datasets", "evaluate", "gguf", "wandb")


def facts() -> dict:
    """card: None without a CUDA device."""
    environment = collect({})
    hardware = environment["hardware"]
    gpus = hardware["gpus"]
    return {
        "card": {**gpus[0], "slug": slug(gpus[0]["name"])} if gpus else None,
        "driver": hardware["gpu_driver"],
        "cuda": hardware["cuda"],
        "packages": {**environment["packages"], "torch": torch.__version__},
        "cpu": f"{hardware['cpu_model']}, {hardware['usable_cores']} cores, {hardware['ram_bytes'] / 1e9:.0f} GB",
        "commit": environment["git_commit"],
        "dirty": environment["git_dirty"],
        "source": source_digest(),
        "missing_modules": [name for name in MODULES if importlib.util.find_spec(name) is None],
    }


def slug(card: str) -> str:
    """NVIDIA H100 80GB HBM3 -> h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower().removeprefix("nvidia")).strip("-")


def source_digest() -> str:
    """12 hex digits of the sha256 of all code that results depend on: a copy without git has no commit to ask for."""
    found = hashlib.sha256()
    for folder in ("rowsft", "baselines", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


if __name__ == "__main__":
    print(json.dumps(facts()))

"""Generators of files: model folders with something wrong in them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_checks import Case
from fuzz_commands import Place

ODD = (None, True, -1, 0, 5, 10**9, 10**30, 0.5, "nope", "", [], [1], {}, {"a": 1}, "x" * 300, "\u202e\x1b[31m")


def model_folders(draw: random.Random, place: Place) -> Case:
    """A run on a model folder of which one file is damaged or says something odd."""
    family = draw.choice(("bert", "llama"))
    folder = place.scratch / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.workshop.folder / "models" / family, folder)
    file = draw.choice(sorted(path.name for path in folder.iterdir()))
    about = damage(draw, folder / file)
    usual = [text for text in place.workshop.overrides(family) if not text.startswith("model.source")]
    settings = ["method=none", "trainer.memory_probe_steps=0", f"model.source={folder}"]
    return Case(["run", *usual, *settings], frozenset({0, 2}), about, keeps=(place.store,))


def damage(draw: random.Random, path: Path) -> str:
    """Change a file, as JSON where it is; returns what was done."""
    content = path.read_bytes()
    tree = _tree(content) if path.suffix == ".json" and draw.random() < 0.75 else None
    if tree:
        about = odd_entry(draw, tree)
        path.write_text(json.dumps(tree))
        return f"{path.name}: {about}"
    name, change = draw.choice(_DAMAGES)
    place = draw.randrange(max(1, len(content)))
    path.write_bytes(change(content, place))
    return f"{path.name}: {name} at byte {place}"


def odd_entry(draw: random.Random, tree: Any) -> str:
    """Put an odd value at a random place of a tree of JSON, or take an entry away; returns what was done."""
    node, path = tree, ""
    while True:
        if not isinstance(node, dict | list):
            return "nothing"
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return "nothing"
        key = draw.choice(keys)
        path = f"{path}.{key}".lstrip(".")
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7:
            node = node[key]
            continue
        if draw.random() < 0.2:
            del node[key]
            return f"without {path}"
        node[key] = draw.choice(ODD)
        return f"{path}={node[key]!r}"


def _tree(content: bytes) -> Any:
    """What a file of JSON holds; None of one that is damaged already."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


_DAMAGES: tuple[tuple[str, Callable[[bytes, int], bytes]], ...] = (
    ("cut off", lambda content, place: content[:place]),
    ("a byte changed", lambda content, place: content[:place] + b"\xff" + content[place + 1 :]),
    ("a zero byte", lambda content, place: content[:place] + b"\0" + content[place:]),
    ("empty", lambda content, place: b""),
    ("a list", lambda content, place: b"[1, 2]"),
    ("nested", lambda content, place: b"[" * 100_000),
    ("a number", lambda content, place: b"5"),
)

"""Generators of command lines: overrides, names of runs, options. Each case is made of a seed and its number alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fuzz_checks import Case
from fuzz_values import GROUPS, VALUES, misspelt, noise, value
from omegaconf import OmegaConf
from tiny_workshop import Workshop

from rowsft.config.compose import compose
from rowsft.config.names import options

ADDED = ("load_in_4bit", "lr", "seed", "x", "_partial_", "_args_", "rows", "name", "a.b", "0", "é")


@dataclass(frozen=True)
class Place:
    """Where the cases run: tiny models and data, a store with finished runs (their ids), a folder for mutants."""

    workshop: Workshop
    runs: tuple[str, ...]
    scratch: Path

    @property
    def store(self) -> Path:
        """The store with finished runs."""
        return self.workshop.folder / "runs"


def composing(draw: random.Random, place: Place) -> Case:
    """Overrides, composed and shown, nothing run."""
    overrides = [_override(draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    return Case(["run", "--show-config", *overrides], keeps=(place.workshop.folder,))


def running(draw: random.Random, place: Place) -> Case:
    """A whole run of a tiny model without training, or its plan, with one odd setting."""
    family = draw.choice(("bert", "llama"))
    command = draw.choice(("run", "run", "plan"))
    usual = place.workshop.overrides(family)
    method = draw.choice(("none", "none", "lora", "row_sft", "head")) if command == "plan" else "none"
    group = draw.choice(("task", "model", "budget", "trainer", "seed"))
    keys = [key for key in _keys(usual[0], usual[3], f"method={method}") if key.split(".")[0] == group]
    odd = f"{draw.choice(keys)}={value(draw)}"
    # A model of the hub cannot be had here, and what a name means there is no matter of this test.
    more = ["trainer.memory_probe_steps=0"] if "memory_probe_steps" not in odd else []
    arguments = [command, *usual, f"method={method}", *more, odd]
    return Case(arguments, frozenset({0, 2}), keeps=(place.store,))


def sweeping(draw: random.Random, place: Place) -> Case:
    """A sweep with a value that no job can have: nothing is started."""
    bad = draw.choice(
        ("seed=x", "seed=1,x", "seed=1,2,-1", "method=lora,nope", "trainer.steps=5,0", "trainer.steps=no")
    )
    odd = [text for text in (_override(draw) for _ in range(draw.randint(0, 2))) if not text.startswith("-")]
    return Case(["sweep", f"store={place.scratch / 'swept'}", *odd, bad], keeps=(place.scratch, place.store))


def naming(draw: random.Random, place: Place) -> Case:
    """Runs, stores, experiments and files named to the commands that read them."""
    usual = place.runs[0]

    def name() -> str:
        few = (
            usual[:6],
            usual,
            usual + "0",
            "",
            "x" * 300,
            f"runs/{usual}",
            "runs",
            "models/bert",
            "data",
            usual.upper(),
        )
        return draw.choice(few) if draw.random() < 0.5 else value(draw)

    store = ["--store", draw.choice(("runs", "runs", name()))]
    commands: tuple[Callable[[], list[str]], ...] = (
        lambda: ["compare", name(), name(), *store],
        lambda: ["compare", usual, usual, *store, "--max-change", draw.choice(("*=0", "accuracy=+1%", value(draw)))],
        lambda: ["export", name(), "--to", draw.choice(("lora", "merged", value(draw))), *store, "--out", "exported"],
        lambda: ["report", "memory", name(), *store],
        lambda: ["runs", *store, "--experiment", name()],
        lambda: ["runs", *store, *draw.choice(([], ["--json"]))],
        lambda: ["tune", name(), *store],
        lambda: ["report", *store, "--experiment", name() or "x", "--out", "reported"],
        lambda: ["fetch", name() or "x"],
        lambda: [value(draw) for _ in range(draw.randint(0, 3))],
        lambda: [draw.choice(("runs", "report", "plan", "tune", "fetch")), "--" + misspelt(draw, "store"), value(draw)],
        lambda: ["plan", "--card", value(draw), "method=lora", "model=nope"],
        lambda: ["plan", "--sweep", f"budget.rows={value(draw)}", "model=nope"],
    )
    arguments = draw.choice(commands)()
    # Zero arguments of fetch would get everything; a help text is no matter of this test.
    if "-h" in arguments or "--help" in arguments or (arguments[:1] in (["run"], ["sweep"]) and len(arguments) < 2):
        arguments = ["runs", *store]
    return Case(arguments, frozenset({0, 1, 2} if arguments[:1] == ["compare"] else {0, 2}), keeps=(place.store,))


def _override(draw: random.Random) -> str:
    """One override, rarely a sensible one."""
    kind = draw.random()
    if kind < 0.35:
        return f"{draw.choice(_keys())}={value(draw)}"
    if kind < 0.5:
        holder = draw.choice((*GROUPS, "", draw.choice(_keys())))
        added = draw.choice((*ADDED, misspelt(draw, draw.choice(_keys()).rpartition(".")[2])))
        return f"{draw.choice(('+', '++', ''))}{holder}{'.' if holder else ''}{added}={value(draw)}"
    if kind < 0.6:
        return f"{draw.choice(('', '+', '++', '~'))}{misspelt(draw, draw.choice(_keys()))}={value(draw)}"
    if kind < 0.75:
        group = draw.choice(GROUPS)
        known = options(group) if group != "hydra" else ["default"]
        name = draw.choice((draw.choice(known), misspelt(draw, draw.choice(known)), value(draw)))
        return f"{draw.choice(('', '', '', '+', '++'))}{group}{draw.choice(('', '', '@x', '/x'))}={name}"
    if kind < 0.85:
        return f"~{draw.choice((*GROUPS, *_keys()))}" + draw.choice(("", "=x", "=null"))
    if kind < 0.9:
        return f"hydra.{draw.choice(('launcher.jobs', 'sweep.dir', 'run.dir', 'mode', 'job.name', 'x'))}={value(draw)}"
    text = draw.choice((noise(draw), draw.choice(VALUES)))
    return text if not text.startswith("-") else f"x{text}"


@cache
def _keys(*choices: str) -> list[str]:
    """Every key of a configuration, dotted."""
    found: list[str] = []

    def walk(node: object, path: str) -> None:
        if path:
            found.append(path)
        if isinstance(node, dict):
            for key, inner in node.items():
                walk(inner, f"{path}.{key}".lstrip("."))

    walk(OmegaConf.to_container(compose(list(choices))), "")
    return found

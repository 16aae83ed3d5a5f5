"""Thousands of odd inputs through the command line: python tests/fuzz/fuzz_run.py --cases 5000 --seed 1

Prints how each kind of case ended, and every case that broke a rule with the command that repeats it
(--only KIND:NUMBER). Exit status 1 if any did.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# This folder, the tests' helpers, and the package of this very checkout.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]

from fuzz_checks import Case, broken_rules, outside, quiet_hub  # noqa: E402
from fuzz_commands import Place, composing, naming, running, sweeping  # noqa: E402
from fuzz_files import model_folders  # noqa: E402
from fuzz_records import damaged_records, data_files  # noqa: E402
from tiny_workshop import build_workshop  # noqa: E402

# Each kind with its share of the cases.
KINDS: dict[str, tuple[Callable[[random.Random, Place], Case], float]] = {
    "composing": (composing, 0.3),
    "running": (running, 0.1),
    "sweeping": (sweeping, 0.05),
    "naming": (naming, 0.25),
    "model_folders": (model_folders, 0.1),
    "damaged_records": (damaged_records, 0.1),
    "data_files": (data_files, 0.1),
}


def build_place(folder: Path) -> Place:
    """Tiny models, their data, and a store with two finished runs."""
    quiet_hub()
    workshop = build_workshop(folder)
    (folder / "scratch").mkdir()
    for family in ("bert", "llama"):
        more = ["method=none", "trainer.memory_probe_steps=0", "experiment_name=fuzzed", "seed=1"]
        with outside(folder):
            broken = broken_rules(Case(["run", *workshop.overrides(family), *more], frozenset({0})))
        if broken:
            raise RuntimeError(f"the runs that the cases are made of fail: {broken}")
    runs = tuple(sorted(path.parent.name for path in (folder / "runs").glob("*/record.json")))
    return Place(workshop, runs, folder / "scratch")


def failures(kind: str, numbers: range, seed: int, place: Place, ends: Counter) -> list[str]:
    """Run the cases of a kind; returns one text for each that broke a rule, and counts the exit statuses in `ends`."""
    make, _ = KINDS[kind]
    found = []
    for number in numbers:
        with outside(place.workshop.folder):
            case = make(random.Random(f"{seed}/{kind}/{number}"), place)
            broken = broken_rules(case)
        ends.update(case.ends or {"none"})
        if broken:
            repeat = f"python tests/fuzz/fuzz_run.py --seed {seed} --only {kind}:{number}"
            found.append("\n  ".join([f"{repeat}", case.command(), *broken]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other cases (default: 0)")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="repeat one case")
    parsed = parser.parse_args()
    wanted = {kind: range(round(share * parsed.cases)) for kind, (_, share) in KINDS.items()}
    if parsed.only:
        kind, _, number = parsed.only.partition(":")
        wanted = {kind: range(int(number), int(number) + 1)}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        place = build_place(Path(folder))
        for kind, numbers in wanted.items():
            ends: Counter = Counter()
            found = failures(kind, numbers, parsed.seed, place, ends)
            bad += len(found)
            counts = ", ".join(f"{count} with {status}" for status, count in sorted(ends.items(), key=str))
            print(f"{kind}: {len(numbers)} cases, {len(found)} broke a rule; exit statuses: {counts}", flush=True)
            for text in found:
                print(f"FAILED {text}", flush=True)
    print(f"{sum(map(len, wanted.values()))} cases, {bad} broke a rule")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

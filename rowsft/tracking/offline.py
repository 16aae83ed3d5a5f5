"""Folders that W&B writes for offline runs: whose they are, which are uploaded, which another one replaces."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"offline-run-\d{8}_\d{6}-(.+)")
#: W&B uploads what begins with "offline-" unless it is told otherwise.
_REPLACED = "replaced-"


@dataclass(frozen=True)
class OfflineRun:
    """One folder, and the id of the W&B run in it."""

    path: Path
    id: str

    @property
    def uploaded(self) -> bool:
        """Whether `wandb sync` has marked it so."""
        return any(self.path.glob("*.wandb.synced"))


def wandb_folder(folder: str | Path | None) -> Path:
    """Return where W&B writes below `folder` (None: where its own settings say, or the working directory)."""
    root = Path(folder or os.environ.get("WANDB_DIR") or ".")
    return root / (".wandb" if (root / ".wandb").exists() else "wandb")


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Return the offline runs in a folder `wandb`, by name, and so by time; those that were replaced left out."""
    if not folder.is_dir():
        return []
    named = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return [OfflineRun(path, name[1]) for path, name in named if name and any(path.glob("*.wandb"))]


def replace(runs: Iterable[OfflineRun]) -> None:
    """Rename the folders so that W&B leaves them alone: a folder that is written next holds all that they do.

    Two folders of one id would overwrite each other when they are uploaded.
    """
    for run in runs:
        run.path.rename(run.path.with_name(f"{_REPLACED}{run.path.name}"))

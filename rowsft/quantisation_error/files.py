"""What was measured as files."""

import json
from pathlib import Path

from rowsft.output import redact
from rowsft.quantisation_error.result import Measured
from rowsft.quantisation_error.tables import markdown
from rowsft.store.files import explained, write_atomic, write_csv


def write(found: Measured, folder: Path, worst_first: bool, command: str) -> list[Path]:
    """Write errors.md, errors.json, model.csv and layers.csv into `folder`; returns the paths.

    Raises UserError where they cannot be written.
    """
    plain = redact.config(found.as_dict(worst_first))
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("errors.md", "errors.json", "model.csv", "layers.csv")]
        write_atomic(paths[0], markdown(found, worst_first, command).encode())
        write_atomic(paths[1], (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
        write_csv(paths[2], plain["model"])
        write_csv(paths[3], plain["layers"])
    return paths

"""Records as versions before `ignores` left them: the id is of the whole config, and nothing says what is ignored."""

import json
import shutil
from pathlib import Path

from rowsft.store.identity import old_identity, old_run_id


def make_older(run: Path) -> str:
    """Turn the finished run in that folder into one of an older version; returns the id that it then has."""
    raw = json.loads((run / "record.json").read_text())
    config = {key: value for key, value in raw["config"].items() if key != "ignores"}
    old = old_run_id(config)
    raw |= {"id": old, "config": config, "identity": old_identity(config)}
    if old != run.name:
        shutil.move(run, run.parent / old)
    (run.parent / old / "record.json").write_text(json.dumps(raw, indent=1))
    return old

"""Real data files for the tests that read some, where a machine has them."""

import os
from pathlib import Path

import pytest

FOLDER = "ROWSFT_TEST_DATA"


def shared_data(*names: str) -> list[Path]:
    """The paths of those files below $ROWSFT_TEST_DATA, else below the nearest shared/data beside a folder above this
    one; skips the test where one is missing."""
    given = os.environ.get(FOLDER)
    roots = [Path(given)] if given else [folder / "shared" / "data" for folder in Path(__file__).resolve().parents]
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        pytest.skip(f"no real data files here: {FOLDER} names no folder with {names[0]}, and there is no shared/data")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {root}")
    return [root / name for name in names]

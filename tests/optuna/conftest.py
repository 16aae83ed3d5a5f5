"""One workshop of tiny models for all tests; skipped where Optuna is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_workshop import Workshop, build_workshop


def pytest_collection_modifyitems(items):
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="needs pip install '.[optuna]': make optuna-test"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))

"""One Ray cluster on loopback and one workshop of tiny models for all tests; skipped where Ray is not installed."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from ray_cluster import running
from tiny_workshop import Workshop, build_workshop


def pytest_collection_modifyitems(items):
    reason = None
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        reason = "needs pip install '.[ray]': make ray-test"
    elif not os.environ.get("ROWSFT_RAY_TESTS"):
        reason = "starts a Ray of its own: make ray-test"
    if reason is not None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ray_address():
    with running(2) as (address, _):
        yield address


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))

"""One Slurm and one workshop of tiny models for all its tests; skipped where no Slurm can be started."""

import os
from importlib.util import find_spec

import cluster
import pytest
from tiny_workshop import Workshop, build_workshop


def pytest_collection_modifyitems(items):
    reason = "needs pip install '.[slurm]': make slurm-test"
    if find_spec("submitit") is not None:
        reason = cluster.missing()
    if reason is None and not os.environ.get("ROWSFT_SLURM_TESTS"):
        reason = "starts a Slurm of its own: make slurm-test"
    if reason is not None:
        for item in items:
            if "slurm" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def slurm():
    """The environment in which Slurm's commands reach the cluster."""
    with cluster.running() as variables:
        os.environ.update(variables)
        yield variables


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))

"""One workshop of tiny models, whose dropout is off: with it, processes draw other masks than one process does."""

import pytest
from tiny_workshop import Workshop, build_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))

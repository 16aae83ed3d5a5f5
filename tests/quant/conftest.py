"""Tiny checkpoints whose layers are as wide as a block of 4-bit codes; skipped where bitsandbytes is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from quantised_bases import save_bert, save_llama


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        if find_spec("bitsandbytes") is None:
            item.add_marker(pytest.mark.skip(reason="needs pip install '.[quant]': make quant-test"))
        elif "int8" in item.name and find_spec("torchao") is None:
            item.add_marker(pytest.mark.skip(reason="needs torchao, of pip install '.[quant]': make quant-test"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """The folder of a saved tiny Llama."""
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """The folder of a saved tiny BERT without a head."""
    return save_bert(tmp_path_factory.mktemp("bert"))

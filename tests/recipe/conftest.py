"""One workshop of tiny models, and texts of any length, for all recipe tests."""

import json

import pytest
import torch
from tiny_workshop import Workshop, build_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def long_data(tmp_path_factory):
    """Data whose longest examples fill any length, next to short ones, so that the largest batch has padding."""
    folder = tmp_path_factory.mktemp("long")
    longs, shorts = " ".join(["w7"] * 60), "w1 w2 w3"
    texts = [longs if number % 4 else shorts for number in range(40)]
    rows = {
        # What is too long is cut from the prompts' start: their ends differ, so that no two share one.
        "pairs": [{"prompt": f"{text} w{number}", "response": text} for number, text in enumerate(texts)],
        "texts": [{"text": f"w{i} {text}", "label": ["bad", "good"][i // 2 % 2]} for i, text in enumerate(texts)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


@pytest.fixture
def one_thread():
    """A CPU's attention has a buffer for every thread, which no plan counts: here they would outgrow a tiny model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

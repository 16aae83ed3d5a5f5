"""Finished runs of tiny models, and tasks on local files; skipped where lm-evaluation-harness is not installed."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from local_tasks import write_task
from tiny_workshop import WORDS, Workshop, build_workshop

from rowsft.cli.main import main
from rowsft.store import Store


def pytest_collection_modifyitems(items):
    if find_spec("lm_eval") is None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="needs pip install '.[eval]': make eval-test"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def runs(workshop) -> dict[str, str]:
    """The id of a finished run of each of these methods, by the method's name."""
    quick = ["trainer.memory_probe_steps=0", "trainer.evaluate=[validation]", "trainer.learning_rate=0.05"]
    overrides = [text for text in workshop.overrides("llama") if text.partition("=")[0] not in _names(quick)]
    for method in ("row_sft", "lora", "dora", "full", "none"):
        with pytest.raises(SystemExit) as ended:
            main(["run", *overrides, *quick, f"method={method}"])
        assert ended.value.code == 0
    return {record.config["method"]["name"]: record.id for record in Store(workshop.folder / "runs").runs()}


def _names(overrides: list[str]) -> set[str]:
    return {text.partition("=")[0] for text in overrides}


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with two tasks of the harness's local form: pick (two answers of any length) and truth (yes or no)."""
    draw = random.Random(1)
    words = lambda least, most: " ".join(draw.choices(WORDS, k=draw.randint(least, most)))  # noqa: E731
    folder = tmp_path / "tasks"
    folder.mkdir()
    pick = [{"q": words(3, 9), "a": [words(1, 5), words(1, 5)], "label": draw.randint(0, 1)} for _ in range(30)]
    truth = [{"q": words(3, 9), "label": draw.randint(0, 1)} for _ in range(30)]
    write_task(folder, "pick", pick, "{{a}}", "{{q}}\n")
    write_task(folder, "truth", truth, ["w1", "w2"], "{{q}} w3")
    return folder

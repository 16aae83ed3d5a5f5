"""What is made of a run whose base had random weights, which nobody keeps."""

import pytest
import torch
from safetensors.torch import load_file

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.export.merged import write_merged
from rowsft.export.source import find
from rowsft.harness.adapted import Loader
from rowsft.runner.run import run
from rowsft.store import Store


def ran(workshop, folder, method):
    given = [text for text in workshop.overrides("llama") if not text.startswith("store=")]
    given += [f"store={folder}", f"method={method}", "+model.pretrained=false", "trainer.steps=2"]
    config = compose([*given, "trainer.memory_probe_steps=0"])
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), rerun=False, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    return Store(folder).get(spec.run_id)


def test_weights_trained_from_random_ones_are_evaluated_as_they_were_saved(workshop, tmp_path):
    record = ran(workshop, tmp_path, "full")
    loader = Loader(torch.device("cpu"))
    loader.check(record)
    saved = load_file(record.file("adapter") / "model.safetensors")
    with loader.adapted(record) as adapted:
        state = adapted.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in saved.items())


def test_an_adapter_without_its_random_base_is_refused(workshop, tmp_path):
    record = ran(workshop, tmp_path, "lora")
    with pytest.raises(UserError, match=r"its base had random weights \(model.pretrained=false\), which no run keeps"):
        Loader(torch.device("cpu")).check(record)
    with pytest.raises(UserError, match="so it would be random"):
        write_merged(find(record.id, tmp_path), tmp_path / "merged")

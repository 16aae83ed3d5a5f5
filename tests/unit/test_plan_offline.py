"""What can be planned without a network, and how soon it is said that something cannot."""

import json
import socket

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rowsft.compat import hub
from rowsft.config.compose import compose
from rowsft.errors import UserError
from rowsft.models.blueprint import SHIPPED_CONFIGS, blueprint
from rowsft.models.loading import load
from rowsft.tasks.heads import CAUSAL_LM
from rowsft.tasks.reading import read_hub

PUBLISHED_PARAMETERS = {
    "meta-llama--Llama-2-7b-hf": 6_738_415_616,
    "meta-llama--Meta-Llama-3-8B": 8_030_261_248,
    "mistralai--Mistral-7B-v0.1": 7_241_732_096,
    "google--gemma-7b": 8_537_680_896,
    "package--smollm2_135m": 134_515_008,
    # Their backbones, 86 and 304 million, with embeddings of 128,100 tokens, a pooler, and two classes.
    "microsoft--deberta-v3-base": 184_423_682,
    "microsoft--deberta-v3-large": 435_063_810,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_shipped_configurations_have_the_published_sizes(name):
    given = json.loads((SHIPPED_CONFIGS / f"{name}.json").read_text())
    kind = AutoModelForSequenceClassification if "deberta" in name else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.for_model(**given))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert hub.without_waiting({"revision": "main"}) == {"revision": "main", "local_files_only": True}


def test_an_unknown_model_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    config = compose(["model=llama3_8b", "model.source=org/nothing", "task=prompt_response"])
    with pytest.raises(UserError, match=r"model\.source=org/nothing: .*without a network, set model\.source"):
        blueprint(config.model, CAUSAL_LM)


def given_up(asked):
    """What the hub's libraries were told to do, by what they were called with."""

    def call(*_, **options):
        import datasets

        asked.append((options.get("local_files_only", False), datasets.config.HF_HUB_OFFLINE))
        raise OSError("nothing in the cache")

    return call


@pytest.mark.parametrize("reachable", [False, True])
def test_a_run_does_not_wait_for_a_hub_to_which_no_way_leads(monkeypatch, reachable):
    import datasets

    asked = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", given_up(asked))
    monkeypatch.setattr(datasets, "load_dataset", given_up(asked))
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.5)
    # make test sets HF_HUB_OFFLINE, under which nobody is asked.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # One that takes calls and says nothing may be slow: a run waits for it.
        port = silent.getsockname()[1] if reachable else 9
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match=r"model\.source=org/nothing: cannot be loaded from the hub"):
            load({"source": "org/nothing"}, CAUSAL_LM)
        with pytest.raises(UserError, match=r"task\.data\.path=org/nothing: cannot be loaded from the hub"):
            read_hub("org/nothing", "task.data.path=org/nothing", None, None, ["text"], lambda names: {})
    assert asked == ([(False, False)] * 2 if reachable else [(True, False), (False, True)])
    assert not datasets.config.HF_HUB_OFFLINE

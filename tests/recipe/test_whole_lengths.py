"""A plan of the data's own lengths held against the run: short responses keep few logits."""

import json
import shutil

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.plan.lengths import of_data
from rowsft.runner.run import run

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def short_answers(tmp_path_factory):
    """Every tenth prompt is long enough for 20 tokens; responses have one or two words."""
    file = tmp_path_factory.mktemp("short") / "pairs.jsonl"
    rows = []
    for number in range(60):
        words = ["w7"] * (16 if number % 3 else 4)
        rows.append({"prompt": " ".join([*words, f"w{number}"]), "response": "w1 w2" if number % 2 else "w1"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_planned_peaks_of_short_responses_are_those_of_the_run(workshop, short_answers, method):
    given = [*workshop.overrides("llama"), f"task.data.path={short_answers}", "task.max_length=64", "trainer.steps=12"]
    given += [f"method={method}", "trainer.evaluate=[train]", "trainer.eval_batch_size=8", "trainer.batch_size=8"]
    config = compose(given)
    lengths = of_data(config)
    assert lengths.source == "data"
    assert (lengths.tokens, lengths.answer) == (lengths.spread["tokens"]["max"], lengths.spread["answer"]["max"])
    assert lengths.tokens < 32
    assert lengths.answer == 3, "two words and the end of the sequence"
    assert lengths.spread["answer"]["p50"] in (2, 3)
    settings = trainer_settings(config)
    planned = plan(config, settings, lengths=lengths)
    assert planned.peak_bytes < 0.9 * plan(config, settings).peak_bytes
    outcome = run(run_spec(config), settings, rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = json.loads((outcome.folder / "record.json").read_text())
    memory = record["attempts"][-1]["memory"]
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=1e-3)
    assert planned.evaluation_bytes >= 0.999 * memory["evaluate"]["peak_allocated_bytes"]


@pytest.fixture(scope="module")
def equal_lengths(tmp_path_factory):
    """Every text is cut to the same length: no batch has padding."""
    file = tmp_path_factory.mktemp("equal") / "pairs.jsonl"
    rows = [{"prompt": " ".join(["w7"] * 40 + [f"w{number}"]), "response": "w1 w2"} for number in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


SIZES = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, num_local_experts=4)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=128, pad_token_id=1)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_without_padding_are_planned_without(workshop, equal_lengths, family):
    folder = workshop.folder / "models" / f"equal-{family}"
    shutil.copytree(workshop.folder / "models" / "llama", folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    given = [*workshop.overrides("llama"), f"task.data.path={equal_lengths}", "task.max_length=24", "trainer.steps=2"]
    given += [
        f"model.source={folder}",
        "model.target_modules=[q_proj,v_proj]",
        "method=row_sft",
        "trainer.batch_size=4",
    ]
    given += ["trainer.evaluate=[train]", "trainer.eval_batch_size=4", "trainer.calibration_batches=2"]
    config = compose(given)
    lengths = of_data(config)
    assert lengths.alike and lengths.tokens == 24
    planned = plan(config, trainer_settings(config), lengths=lengths)
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    memory = json.loads((outcome.folder / "record.json").read_text())["attempts"][-1]["memory"]
    found = {stage: memory[stage]["peak_allocated_bytes"] for stage in ("train", "select", "evaluate")}
    wanted = {"train": planned.peak_bytes, "select": planned.selection_bytes, "evaluate": planned.evaluation_bytes}
    off = {stage: wanted[stage] / found[stage] - 1 for stage in found}
    assert max(map(abs, off.values())) < 1e-3, off

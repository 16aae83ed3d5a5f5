"""Whole runs on a quantised base: recorded, planned, measured again, evaluated and exported."""

import json
import random

import pytest
import torch
from quantised_bases import save_llama
from tiny import causal_batch
from tiny_workshop import build_workshop, tokenizer
from transformers import AutoModelForCausalLM

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.export import export
from rowsft.harness.adapted import Loader
from rowsft.plan import plan
from rowsft.runner.alone import measure_alone
from rowsft.runner.run import run
from rowsft.store import Store

METHODS = {
    "row_sft": ["method=row_sft"],
    "zero": ["method=row_sft", "method.quantised_start=zero"],
    "columns": ["method=row_sft_columns", "method.importance=l2"],
    "lora": ["method=lora"],
    "dora": ["method=dora"],
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = build_workshop(tmp_path_factory.mktemp("workshop"))
    folder = save_llama(made.folder / "models" / "llama")
    tokenizer("llama").save_pretrained(folder)
    words = random.Random(0)
    # As long as task.max_length allows next to short ones, so that the largest batch has padding.
    texts = [" ".join(["w7"] * 60) if number % 4 else "w1 w2 w3" for number in range(40)]
    pairs = [{"prompt": f"{text} w{number}", "response": text} for number, text in enumerate(texts)]
    (made.folder / "data" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    text = "\n\n".join(" ".join(f"w{words.randrange(100)}" for _ in range(30)) for _ in range(20))
    (made.folder / "text.txt").write_text(text)
    return made


def spec_of(workshop, *overrides, kind="nf4"):
    given = [*workshop.overrides("llama"), "trainer.steps=3", "trainer.evaluate=[validation]", "task.max_length=24"]
    config = compose([*given, f"model.quantize={kind}", "trainer.checkpoint_minutes=null", *overrides])
    return run_spec(config), trainer_settings(config), config


@pytest.fixture(scope="module")
def runs(workshop):
    """Method -> (its spec, the record of its finished run)."""
    found = {}
    for name, overrides in METHODS.items():
        spec, settings, _ = spec_of(workshop, *overrides)
        outcome = run(spec, settings, rerun=False, say=lambda text: None)
        assert outcome.state == "done", outcome.message
        found[name] = spec, Store(spec.store).get(spec.run_id)
    return found


@torch.no_grad()
def logits(model):
    batch = {key: value for key, value in causal_batch().items() if key != "labels"}
    return model.eval()(**batch).logits


def adapted_logits(record):
    with Loader(torch.device("cpu")).adapted(record) as adapted:
        assert adapted.checks.adapter_difference > 0
        return logits(adapted.model)


def test_the_record_says_what_the_base_was_packed_in(runs):
    for name, (_, record) in runs.items():
        assert record.config["model"]["quantize"] == "nf4"
        facts = record.result.model_facts
        assert facts.quantized_layers == 14 and facts.dtype == "float32"
        assert record.result.environment.packages["bitsandbytes"]
        assert record.result.parameters.adapter_dtype == "float32"
        # Of the checkpoint, however many bytes pack them.
        assert record.result.parameters.base == facts.parameters == 2 * 128 * 64 + 2 * 36992 + 64
        assert record.result.resolved.get("quantised_start") == {
            "row_sft": "residual",
            "zero": "zero",
            "columns": "residual",
        }.get(name)


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_what_the_run_takes(workshop, runs, name):
    config = spec_of(workshop, *METHODS[name])[2]
    planned, measured = plan(config, trainer_settings(config)), runs[name][1].result.memory
    assert planned.peak_bytes == pytest.approx(measured.train.peak_allocated_bytes, rel=1e-3)
    if name == "row_sft":
        assert planned.selection_bytes == pytest.approx(measured.select.peak_allocated_bytes, rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_merged_into_the_quantised_values_it_is_the_adapted_model(workshop, runs, name, tmp_path):
    spec, record = runs[name]
    out = export(spec.run_id, "merged", tmp_path / "out", spec.store, into="quantised")
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), adapted_logits(record), rtol=1e-3, atol=1e-4)
    card = (out / "README.md").read_text()
    assert "trained in nf4" in card and "--merge-into quantised" in card


def test_merged_into_the_originals_all_but_the_trained_rows_are_the_originals(workshop, runs, tmp_path):
    said = []
    merged = {}
    for into in ("original", "quantised"):
        spec, record = runs["row_sft"]
        out = export(spec.run_id, "merged", tmp_path / into, spec.store, warn=said.append, into=into)
        merged[into] = AutoModelForCausalLM.from_pretrained(out)
    assert "merged into the weights before quantisation, which is another model" in said[0] and len(said) == 1
    original = AutoModelForCausalLM.from_pretrained(record.config["model"]["source"])
    from safetensors.torch import load_file

    saved = load_file(record.file("adapter") / "adapter_model.safetensors")
    for key, rows in saved.items():
        if not key.endswith("row_sft_ids"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".row_sft_ids")
        ours, own = merged["original"].get_submodule(name).weight, original.get_submodule(name).weight
        others = [row for row in range(len(own)) if row not in set(rows.tolist())]
        assert torch.equal(ours[others], own[others])
        torch.testing.assert_close(
            ours[rows], merged["quantised"].get_submodule(name).weight[rows], rtol=1e-5, atol=1e-6
        )


def test_from_zero_the_change_is_added_to_the_originals(workshop, runs, tmp_path):
    spec, record = runs["zero"]
    out = export(spec.run_id, "merged", tmp_path / "out", spec.store, warn=lambda text: None, into="original")
    merged, original = (
        AutoModelForCausalLM.from_pretrained(out),
        AutoModelForCausalLM.from_pretrained(record.config["model"]["source"]),
    )
    from safetensors.torch import load_file

    saved = load_file(record.file("adapter") / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    rows, delta = saved[f"base_model.model.{name}.row_sft_ids"], saved[f"base_model.model.{name}.row_sft_delta"]
    change = merged.get_submodule(name).weight - original.get_submodule(name).weight
    torch.testing.assert_close(change[rows], delta, rtol=1e-4, atol=1e-6)


def test_an_export_says_what_it_needs(workshop, runs, tmp_path):
    spec, _ = runs["row_sft"]
    with pytest.raises(UserError, match="was trained on a base in nf4; say what to merge into: --merge-into quantised"):
        export(spec.run_id, "merged", tmp_path / "out", spec.store)
    with pytest.raises(UserError, match="--merge-into original: nothing is merged with --to lora"):
        export(spec.run_id, "lora", tmp_path / "out", spec.store, into="original")
    said = []
    out = export(spec.run_id, "lora", tmp_path / "lora", spec.store, warn=said.append)
    assert said == [text for text in said if "a change of the base in nf4" in text] and len(said) == 1
    assert "a change of a base in nf4" in (out / "README.md").read_text()
    # A folder alone knows, too.
    with pytest.raises(UserError, match="was trained on a base in nf4"):
        export(str(runs["row_sft"][1].file("adapter")), "merged", tmp_path / "out", spec.store)


def test_measured_again_alone(runs, workshop):
    spec, settings, _ = spec_of(workshop, *METHODS["row_sft"], "measure=alone", "measure_steps=3")
    outcome = measure_alone(spec, settings, True, lambda text: None)
    assert (outcome.state, outcome.message) == ("done", "")
    alone = Store(spec.store).get(spec.run_id).result.alone
    assert alone.memory.train.peak_allocated_bytes == pytest.approx(
        runs["row_sft"][1].result.memory.train.peak_allocated_bytes, rel=0.05
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=full"], "method=full: .* quantised.*model.quantize=null"),
        (["method=shira"], "method=shira: layer .* is quantised"),
        (
            ["method=row_sft", "method.importance='zo_taylor(draws=2)'"],
            "importance=zo_taylor: layer .* quantised weight",
        ),
        (
            ["method=lora", "trainer.forgetting.path={text}", "trainer.forgetting.max_length=24"],
            "trainer.forgetting.path: layer .* quantised",
        ),
        (
            ["method=row_sft", "method.quantised_start=half"],
            "method.quantised_start=half: unknown; use one of residual, zero",
        ),
        (["method=row_sft", "model.quantize=nf5"], "model.quantize=nf5: expected nf4, nf4_double, int8, or null"),
    ],
)
def test_what_cannot_be_is_said_before_training(workshop, overrides, words):
    given = [text.format(text=workshop.folder / "text.txt") for text in overrides]
    with pytest.raises(UserError, match=words):
        spec, settings, _ = spec_of(workshop, *given)
        run(spec, settings, rerun=False, say=lambda text: None)


@pytest.mark.parametrize("method", ["row_sft", "none"])
def test_what_is_forgotten_of_a_text_is_measured(workshop, method):
    spec, settings, _ = spec_of(
        workshop,
        f"method={method}",
        f"trainer.forgetting.path={workshop.folder / 'text.txt'}",
        "trainer.forgetting.max_length=24",
    )
    outcome = run(spec, settings, rerun=False, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    forgetting = Store(spec.store).get(spec.run_id).result.forgetting
    assert forgetting.csd_rel is None or (forgetting.csd_rel > 0) == (method == "row_sft")

"""`rowsft export` from recorded runs: what it writes is plain PEFT or transformers, and what it cannot do it says."""

import json
import shlex

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner import run as job
from rowsft.store import Store

pytestmark = pytest.mark.whole

AUTO = {"llama": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}


def run(workshop, family, method, name, *more):
    """A run recorded from this process: starting another for each would take most of the test's time."""
    config = compose([*workshop.overrides(family), f"method={method}", f"experiment_name={name}", *more])
    spec = run_spec(config)
    job.run(spec, trainer_settings(config), rerun=False, say=lambda text: None)
    return Store(spec.store).get(spec.run_id)


def export(workshop, capsys, run, *arguments):
    """The command line in this process: its exit status, last line of output and whole error output."""
    # What recording the run has said.
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["export", run, "--store", str(workshop.folder / "runs"), *arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out.strip().rpartition("\n")[2], said.err


def exported(workshop, capsys, record, to, name):
    out = workshop.folder / name
    code, last, errors = export(workshop, capsys, record.id[:8], "--to", to, "--out", str(out))
    assert (code, last) == (0, str(out)), errors
    return out, errors


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run_goes_out_as_lora_and_merged(workshop, capsys, family):
    record = run(workshop, family, "row_sft", f"export_{family}")
    merged, _ = exported(workshop, capsys, record, "merged", f"merged_{family}")
    batch = AutoTokenizer.from_pretrained(merged)(["w1 w2 w3", "w7 w9"], padding=True, return_tensors="pt")
    plain = AUTO[family].from_pretrained(merged)
    assert {path.name for path in merged.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not any("row_sft" in name for name, _ in plain.named_parameters())

    source = workshop.folder / "models" / family
    labels = {"num_labels": 2} if family == "bert" else {}
    tuned = PeftModel.from_pretrained(AUTO[family].from_pretrained(source, **labels), record.file("adapter"))
    assert torch.equal(logits(plain, batch), logits(tuned, batch))
    assert not torch.equal(logits(plain, batch), logits(tuned.unload(), batch))
    tuned = PeftModel.from_pretrained(AUTO[family].from_pretrained(source, **labels), record.file("adapter"))

    adapter, warnings = exported(workshop, capsys, record, "lora", f"lora_{family}")
    assert ("vLLM does not read lora_bias" in warnings) is (family == "bert")
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    served = PeftModel.from_pretrained(AUTO[family].from_pretrained(source, **labels), adapter)
    torch.testing.assert_close(logits(served, batch), logits(tuned, batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(served.merge_and_unload(), batch), logits(plain, batch))

    attempt = record.result
    for folder, library in ((adapter, "peft"), (merged, "transformers")):
        card = (folder / "README.md").read_text()
        assert f"library_name: {library}" in card
        assert f"| peak memory of training, MiB | {attempt.memory.train.peak_allocated_bytes / 2**20:.1f} |" in card
        assert f"| trainable parameters, task head apart | {attempt.parameters.adapter} |" in card
        for split, metrics in attempt.metrics.items():
            for metric, value in metrics.items():
                assert f"| {split} {metric} | {value:.4f} |" in card
    if family == "bert":
        config = json.loads((merged / "config.json").read_text())
        assert config["id2label"] == {"0": "bad", "1": "good"}

    code, _, errors = export(workshop, capsys, record.id, "--to", "lora", "--out", str(adapter))
    assert code == 2 and f"rowsft: error: --out {adapter}: exists already" in errors
    if family == "bert":
        out = workshop.folder / "refused"
        code, _, errors = export(workshop, capsys, record.id, "--to", "lora", "--out", str(out), "--biases", "refuse")
        assert code == 2 and "which biases=refuse forbids" in errors
        assert not out.exists()


def test_the_command_on_the_card_names_the_very_same_run(workshop, capsys):
    record = run(workshop, "llama", "row_sft", "export_llama")
    card, _ = exported(workshop, capsys, record, "lora", "lora_command")
    (command,) = [line for line in (card / "README.md").read_text().splitlines() if line.startswith("rowsft run ")]
    spec = run_spec(compose(shlex.split(command)[2:]))
    assert spec.run_id == record.id


def test_other_methods(workshop, capsys):
    record = run(workshop, "llama", "lora", "export_lora")
    nothing = workshop.folder / "nothing"
    code, _, errors = export(workshop, capsys, record.id, "--to", "lora", "--out", str(nothing))
    assert code == 2
    assert f"run {record.id} is a LoRA adapter already" in errors and "nothing to convert" in errors
    merged, _ = exported(workshop, capsys, record, "merged", "merged_lora")
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(workshop.folder / "models" / "llama"), record.file("adapter")
    )
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.equal(logits(plain, batch), logits(tuned.merge_and_unload(), batch))

    for method, said in (("full", "its checkpoint is"), ("none", "expected a row_sft run")):
        record = run(workshop, "llama", method, f"export_{method}")
        code, _, errors = export(workshop, capsys, record.id, "--to", "merged", "--out", str(nothing))
        assert code == 2
        assert f"is of method {method}, which has no adapter to export; {said}" in errors
    assert not nothing.exists()


def test_a_fully_tuned_checkpoint_serves_a_pipeline_as_it_is(workshop):
    record = run(workshop, "bert", "full", "whole_checkpoint", "trainer.learning_rate=0.01")
    served = pipeline("text-classification", model=str(record.file("adapter")), top_k=None)
    texts = [example["text"] for example in map(json.loads, (workshop.folder / "data/texts.jsonl").open())][:8]
    answers = [{answer["label"]: answer["score"] for answer in answers} for answers in served(texts)]
    assert all(answer.keys() == {"bad", "good"} for answer in answers)
    assert len({round(answer["good"], 6) for answer in answers}) > 1
    model = AutoModelForSequenceClassification.from_pretrained(record.file("adapter"))
    assert model.config.label2id == {"bad": 0, "good": 1}


def test_unknown_and_unfinished_runs(workshop, capsys):
    code, _, errors = export(workshop, capsys, "feed", "--to", "lora")
    assert code == 2 and f"run 'feed': is not in it (store {workshop.folder / 'runs'})" in errors
    record = run(workshop, "llama", "row_sft", "export_failed", "trainer.learning_rate=1e30")
    code, _, errors = export(workshop, capsys, record.id, "--to", "lora")
    assert code == 2
    assert errors.startswith(f"rowsft: error: run {record.id} (row_sft) is failed and has no finished attempt")
    assert len(errors.splitlines()) == 1


def test_a_base_model_that_has_changed_is_refused(workshop, capsys):
    record = run(workshop, "llama", "row_sft", "export_llama")
    weights = workshop.folder / "models" / "llama" / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        code, _, errors = export(workshop, capsys, record.id, "--to", "merged", "--out", str(workshop.folder / "new"))
    finally:
        weights.write_bytes(before)
    assert code == 2 and "was trained on revision sha256:" in errors

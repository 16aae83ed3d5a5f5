"""What is asked of an adapted model before it is scored: that its adapter does something, and the same when merged."""

import json
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from tiny import tiny_gpt2, tiny_llama

import rowsft
from rowsft.cli.main import main
from rowsft.errors import UserError
from rowsft.harness.checks import TOLERANCE, check, logits_of

TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(base, **settings) -> PeftModel:
    return get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **settings)).eval()


def rows(base) -> PeftModel:
    model = get_peft_model(base, rowsft.RowSFTConfig(rows=2, importance="l2", target_modules=TARGETS)).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_(std=0.1)
    return model


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


ADAPTERS = {"lora": lora, "dora": lambda base: lora(base, use_dora=True), "row_sft": rows}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_adapter_passes_and_the_model_stays_as_it_was_to_the_bit(kind, dtype):
    base = tiny_llama(dtype)
    before = logits_of(base)
    model = ADAPTERS[kind](base)
    held = state(model)
    found = check("x", model, before)
    assert found.adapter_difference > 0
    assert found.merged_difference <= found.tolerance == TOLERANCE[dtype] * float(logits_of(model).abs().max())
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits_of(model.unload()), before)


def test_an_adapter_that_changes_nothing_is_refused():
    base = tiny_llama()
    before = logits_of(base)
    untrained = get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS)).eval()
    with pytest.raises(UserError, match="run x: its adapter changes no logit of the base model"):
        check("x", untrained, before)
    off = lora(tiny_llama())
    off.base_model.disable_adapter_layers()
    with pytest.raises(UserError, match="changes no logit"):
        check("x", off, before)


def test_merged_weights_that_compute_something_else_are_refused(monkeypatch):
    base = tiny_llama()
    before, delta = logits_of(base), Linear.get_delta_weight
    model = lora(base)
    held = state(model)
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 1.5 * delta(self, adapter))
    with pytest.raises(UserError, match="logits of merged and unmerged weights differ by"):
        check("x", model, before)
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def test_logits_that_are_not_finite_are_refused():
    base = tiny_llama()
    before, model = logits_of(base), lora(base)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        check("x", model, before)


def test_the_tokens_are_there_in_a_small_vocabulary_and_modes_stay():
    model = tiny_gpt2(vocab_size=7).train()
    assert torch.equal(logits_of(model), logits_of(model)) and model.training


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_extra_one_line_names_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "3f2a", "--lm-eval", "boolq"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("rowsft eval --lm-eval: needs lm_eval, which is not installed; pip install 'rowsft[eval]'")


def test_a_record_reads_back_what_the_harness_found():
    from rowsft.record import HarnessResult, plain, read_attempt

    result = HarnessResult.of(task="boolq", metrics={"acc,none": 0.5, "acc_stderr,none": None}, examples=4)
    attempt = read_attempt({"attempt": 1, "state": "done", "lm_eval": [plain(result)]})
    assert attempt.lm_eval[0].metrics == {"acc,none": 0.5, "acc_stderr,none": None}
    assert json.loads(json.dumps(plain(attempt)))["lm_eval"][0]["task"] == "boolq"

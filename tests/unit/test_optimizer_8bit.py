"""`trainer.optimizer=adamw_8bit` and `trainer=lean`: settings that hold for every method alike."""

from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from method_contract import RATE, causal_batch, prepared, train
from planning import SMALL, planned, small_case
from refusals import refusal
from tiny import tiny_llama

from rowsft.compat.liger import check_fused_loss
from rowsft.compat.optimizer_8bit import adamw_8bit, require_bitsandbytes
from rowsft.config.compose import compose
from rowsft.config.settings import TrainerSettings, trainer_settings
from rowsft.config.typed import plain
from rowsft.measure.memory import resident_tensor_bytes
from rowsft.methods.optimizing import Optimizing
from rowsft.plan.step import plan_step
from rowsft.runner.optimizers import optimizer_maker
from rowsft.store.identity import identity, run_id

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install '.[quant]'; make quant-test"
)


def wide_llama():
    """Its layers are large enough for a state in 8 bit."""
    return tiny_llama(hidden_size=64, intermediate_size=128)


@needs_bitsandbytes
def test_losses_are_those_of_bitsandbytes_by_hand():
    from bitsandbytes.optim import AdamW8bit

    model, batch = wide_llama(), causal_batch()
    reference = deepcopy(model)
    optimizer = Optimizing().optimizer(model, optimizer_maker(TrainerSettings(optimizer="adamw_8bit")), RATE)
    embeddings = reference.model.embed_tokens.weight
    others = [parameter for parameter in reference.parameters() if parameter is not embeddings]
    by_hand = AdamW8bit([{"params": others}], lr=RATE, weight_decay=0.0)
    # In 32 bit it is plain AdamW.
    in_32_bit = AdamW8bit([{"params": [embeddings]}], lr=RATE, weight_decay=0.0, min_8bit_size=2**40)
    expected = []
    for _ in range(6):
        reference.zero_grad()
        loss = reference(**batch).loss
        loss.backward()
        by_hand.step()
        in_32_bit.step()
        expected.append(loss.item())
    assert train(model, batch, 6, optimizer) == expected
    assert len(set(expected)) == 6
    state = optimizer.state
    assert state[model.lm_head.weight]["state1"].dtype == torch.uint8
    assert state[model.model.embed_tokens.weight]["state1"].dtype == torch.float32
    assert state[model.model.norm.weight]["state1"].dtype == torch.float32


@needs_bitsandbytes
def test_groups_of_a_method_keep_their_rates():
    method, _, model, _, batch = prepared("llama", "lora_plus")
    optimizer = Optimizing(method).optimizer(model, lambda m, groups: adamw_8bit(m, groups, 0.0), RATE)
    assert [group["lr"] for group in optimizer.param_groups] == [RATE, 16 * RATE]
    assert len(set(train(model, batch, 3, optimizer))) == 3


@needs_bitsandbytes
def test_its_state_is_planned_to_the_byte():
    """All of it on a GPU; on a CPU bitsandbytes' step takes copies of a tensor besides, which a plan says."""
    from plan_accuracy import compare

    make = optimizer_maker(TrainerSettings(optimizer="adamw_8bit"))
    model, blank = wide_llama(), wide_llama().to("meta")
    train(model, causal_batch(), 1, optimizer := Optimizing().optimizer(model, make, RATE))
    batch = {name: value.to("meta") for name, value in causal_batch().items()}
    planned_parts = plan_step(blank, batch, False, False, optimizer_name="adamw_8bit").peak.parts
    assert planned_parts["optimizer_state"] == resident_tensor_bytes(model, optimizer)["optimizer_bytes"]
    assert planned_parts["optimizer_state"] < 0.8 * plan_step(blank, batch, False, False).peak.parts["optimizer_state"]
    found = compare(small_case(method="lora adamw_8bit", attention="eager", padded=False))
    assert found["planned_bytes"] == found["measured_bytes"]
    assert any(
        "adamw_8bit" in said for said in planned(*SMALL, "method=lora", "trainer.optimizer=adamw_8bit").run.assumptions
    )


def test_the_keys_are_in_no_id_where_they_are_off():
    config = plain(compose(["method=lora"]))
    before = deepcopy(config)
    for key in ("optimizer", "fused_linear_cross_entropy"):
        del before["trainer"][key]
        assert key not in identity(config)["trainer"]
    assert run_id(config) == run_id(before)
    assert identity(plain(compose(["method=lora", "trainer.optimizer=adamw_8bit"])))["trainer"]["optimizer"]
    assert identity(plain(compose(["method=lora", "trainer=lean"])))["trainer"]["fused_linear_cross_entropy"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.optimizer=sgd"], "trainer.optimizer=sgd: expected one of adamw, adamw_8bit"),
        (["trainer=fsdp", "trainer.optimizer=adamw_8bit"], "expected adamw under trainer.strategy=fsdp"),
        (["trainer=lean", "trainer.device=cpu"], "trainer.fused_linear_cross_entropy=True: expected false on a CPU"),
        (["trainer=lean", "trainer.strategy=ddp"], "expected false in several processes"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, says):
    assert says in refusal(lambda: trainer_settings(compose(overrides)))


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("rowsft.compat.optimizer_8bit.find_spec", lambda name: None)
    monkeypatch.setattr("rowsft.compat.liger.find_spec", lambda name: None)
    assert "pip install 'rowsft[quant]'" in refusal(require_bitsandbytes, "trainer.optimizer=adamw_8bit")
    assert "pip install 'rowsft[lean]'" in refusal(check_fused_loss, torch.device("cuda"))
    assert "runs on CUDA alone, and this run is on cpu" in refusal(check_fused_loss, torch.device("cpu"))
    assert "rowsft[quant]" in refusal(planned, *SMALL, "method=lora", "trainer.optimizer=adamw_8bit")

"""Kernels and autocast on tensors without data, and what cannot be known without."""

import pytest
import torch
from planning import SMALL, planned
from torch._subclasses.fake_tensor import FakeTensorMode

from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.plan import _or_refuse
from rowsft.plan.autocast import autocast, autocasting, claimed_alike, fake_device
from rowsft.plan.planned_run import planned_run
from rowsft.plan.without_data import without_data


@pytest.mark.parametrize(("gpu", "kind"), [(False, torch.bfloat16), (True, torch.float32)])
def test_a_gpus_autocast_keeps_in_32_bit_what_a_cpus_does_not(gpu, kind):
    """torch's documented lists: CUDA's has layer_norm and softmax among its float32 operators, the CPU's has not."""
    with torch.device("meta"):
        model = autocasting(torch.nn.Linear(8, 8), "bf16")
        given = claimed_alike(torch.empty(4, 8), model)
    with fake_device(model, gpu), autocast("bf16"):
        linear = torch.nn.functional.linear(given, model.weight)
        assert linear.dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(linear, (8,)).dtype == kind
        assert linear.softmax(-1).dtype == kind
    assert torch.nn.functional.layer_norm(torch.zeros(2, 8, dtype=torch.bfloat16), (8,)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("gpu", "given", "weight", "kept"),
    [
        (False, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (False, torch.bfloat16, torch.float32, torch.float32),
        (False, torch.bfloat16, None, torch.bfloat16),
        (False, torch.float32, torch.float32, torch.float32),
        (True, torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
def test_a_cpus_norm_keeps_its_statistics_in_16_bit(gpu, given, weight, kept):
    def statistics(device):
        scale = None if weight is None else torch.ones(8, dtype=weight, device=device)
        return torch.native_layer_norm(torch.ones(4, 8, dtype=given, device=device), (8,), scale, None, 1e-5)[1:]

    with without_data(gpu, padded=False):
        assert [tensor.dtype for tensor in statistics("meta")] == [kept, kept]
    if not gpu:
        assert [tensor.dtype for tensor in statistics("cpu")] == [kept, kept]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=row_sft", "method.importance=labelwise(taylor,max)"],
            r"cannot be planned: it needs values.*measure it",
        )
    ],
)
def test_what_cannot_be_known_is_said(overrides, message):
    with pytest.raises(UserError, match=message):
        planned(*SMALL, *overrides)


def fake():
    """What a plan under autocast is made of."""
    with FakeTensorMode():
        return torch.empty(2)


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(2, device="meta").tolist(),
        lambda: torch.empty(2, device="meta").sum().item(),
        lambda: torch.empty(2, device="meta").nonzero(),
        lambda: torch.empty(2, device="meta").unique(),
        lambda: torch.empty(2, device="meta").numpy(),
        lambda: fake().nonzero(),
        lambda: fake().sum().item(),
    ],
)
def test_what_torch_refuses_without_data_is_told_and_nothing_else(work):
    config = compose(SMALL)
    run = planned_run(config, trainer_settings(config))
    with pytest.raises(UserError, match="cannot be planned"):
        _or_refuse(run, work)

    def bug():
        torch.empty(2, 3, device="meta") @ torch.empty(2, 3, device="meta")

    with pytest.raises(RuntimeError, match="same reduction dim"):
        _or_refuse(run, bug)

"""Weights in few bits and what adapters start from, against bitsandbytes, PEFT and closed forms."""

import math
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_loftq import peft_loftq
from torch import nn

from rowsft.errors import UserError
from rowsft.quantisation import int8, nf4
from rowsft.quantisation.low_rank import principal
from rowsft.quantisation.quantisers import quantiser
from rowsft.quantisation.starts import loftq, pissa

#: d_in a multiple of the block, blocks across rows, a last block that is shorter, one row, one weight.
SHAPES = [(48, 128), (40, 96), (7, 33), (1, 64), (1, 1)]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first.double() - second.double()).norm().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_takes_the_nearest_value_of_the_code_in_every_block(shape):
    weight = gaussian(*shape)
    flat, decoded = weight.flatten().double(), nf4.quantised(weight).flatten().double()
    for first in range(0, len(flat), nf4.BLOCK):
        block = flat[first : first + nf4.BLOCK]
        levels = torch.tensor(nf4.VALUES, dtype=torch.float64) * block.abs().max()
        nearest = (block.unsqueeze(1) - levels).abs().amin(1)
        torch.testing.assert_close((block - decoded[first : first + nf4.BLOCK]).abs(), nearest, rtol=0, atol=1e-6)


def test_nf4_keeps_what_its_code_can_hold():
    levels = torch.tensor(nf4.VALUES).repeat(4).view(1, 64)
    weight = torch.cat([levels * 0.03, torch.zeros(1, 64), levels * -7])
    assert torch.equal(nf4.quantised(weight)[1], torch.zeros(64))
    torch.testing.assert_close(nf4.quantised(weight)[:2], weight[:2], rtol=1e-6, atol=0)
    once = nf4.encode(gaussian(8, 128))
    again = nf4.encode(nf4.decode(once))
    assert torch.equal(once.codes, again.codes) and torch.equal(once.absmax, again.absmax)


def test_int8_is_off_by_half_a_step_of_its_row_at_most():
    weight = torch.cat([gaussian(20, 50), torch.zeros(1, 50)])
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((int8.quantised(weight) - weight).abs() <= step * 0.5 * (1 + 1e-4)).all()
    assert torch.equal(int8.quantised(weight)[20], torch.zeros(50))


def test_bits_are_codes_and_scales():
    assert quantiser("nf4").bits((48, 128)) / (48 * 128) == 4.5
    assert quantiser("nf4").bits((7, 33)) == 4 * 7 * 33 + 32 * 4
    assert quantiser("int8").bits((48, 128)) == 8 * 48 * 128 + 32 * 48


def test_what_is_unknown_or_not_installed_is_told():
    with pytest.raises(UserError, match="quantiser=fp4: unknown; use one of nf4, nf4_double, int8"):
        quantiser("fp4")
    with pytest.raises(UserError, match="quantiser=nf4_double: computed by bitsandbytes alone"):
        quantiser("nf4_double")
    with pytest.raises(UserError, match="backend=cuda: unknown; use one of torch, bitsandbytes"):
        quantiser("nf4", "cuda")
    with (
        mock.patch.dict("sys.modules", {"bitsandbytes": None}),
        pytest.raises(UserError, match=r"pip install 'rowsft\[quant\]'"),
    ):
        quantiser("nf4", "bitsandbytes")


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_principal_components_are_those_of_the_singular_value_decomposition(shape):
    matrix = gaussian(*shape)
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    for rank in (1, 5, 100):
        factors = principal(matrix, rank)
        kept = min(rank, *shape)
        assert factors.b.shape == (shape[0], kept) and factors.a.shape == (kept, shape[1])
        torch.testing.assert_close(
            factors.product.double(), left[:, :kept] * sizes[:kept] @ right[:kept], atol=1e-5, rtol=0
        )
        # Shared evenly, as PEFT does, so that both factors are trained alike.
        torch.testing.assert_close(factors.b.norm(dim=0), factors.a.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_principal_components_of_less_rank_than_asked_and_of_nothing():
    thin = gaussian(20, 2) @ gaussian(2, 30, seed=1)
    assert distance(principal(thin, 6).product, thin) < 1e-5 * thin.norm()
    assert torch.equal(principal(torch.zeros(4, 6), 2).product, torch.zeros(4, 6))
    assert torch.equal(principal(thin, 0).product, torch.zeros(20, 30))


def test_subspace_iterations_come_near_and_leave_the_random_stream_alone():
    weight = gaussian(96, 128)
    before = torch.get_rng_state()
    fast = distance(principal(weight, 8, iterations=8).product, weight)
    assert torch.equal(torch.get_rng_state(), before)
    exact = distance(principal(weight, 8).product, weight)
    assert exact * (1 - 1e-6) <= fast < 1.01 * exact


def test_loftq_alternates_and_its_first_step_is_the_best_correction_of_plain_nf4():
    weight, rank = gaussian(64, 128), 8
    plain = nf4.quantised(weight)
    starts = list(loftq(weight, nf4.quantised, rank, iterations=5))
    assert torch.equal(starts[0].base, plain)
    left_over = torch.linalg.svdvals((weight - plain).double())[rank:].norm().item()
    assert distance(weight, starts[0].base + starts[0].factors.product) == pytest.approx(left_over, rel=1e-5)
    for before, start in zip(starts, starts[1:], strict=False):
        # The base is really that of the rest, so it is replaced in every step.
        assert torch.equal(start.base, nf4.quantised(weight - before.factors.product))
        assert not torch.equal(start.base, before.base)
        assert distance(weight, start.base + start.factors.product) < distance(weight, start.base)
    errors = [distance(weight, start.base + start.factors.product) for start in starts]
    assert errors[0] < distance(weight, plain) and min(errors) < errors[0]


def test_pissa_quantises_what_its_principal_components_leave():
    weight, rank = gaussian(64, 128), 8
    first, second = pissa(weight, nf4.quantised, rank, iterations=2)
    assert distance(first.factors.product, principal(weight, rank).product) == 0
    assert torch.equal(first.base, nf4.quantised(weight - first.factors.product))
    assert distance(second.factors.product, principal(weight - first.base, rank).product) == 0
    assert torch.equal(second.base, nf4.quantised(weight - second.factors.product))


@pytest.mark.parametrize("name", ["nf4", "int8"])
@pytest.mark.parametrize("d_in", [128, 96], ids=["blocks within rows", "blocks across rows"])
def test_rows_kept_exact_are_a_fixed_point_of_the_alternating_steps_after_the_first(name, d_in):
    """The largest weight of a block is kept as it is, so a block that a chosen row shares has the same scale again."""
    weight, rows = gaussian(32, d_in), torch.tensor([3, 11, 12, 30])
    base = quantiser(name)(weight)
    rest = weight.clone()
    rest[rows] -= (weight - base)[rows]
    torch.testing.assert_close(quantiser(name)(rest), base, rtol=1e-6, atol=0)
    # Not so for what does not stay as it is: a change of the scale shows.
    rest[rows] *= 1.5
    assert distance(quantiser(name)(rest), base) > 0.1


def test_pissa_of_peft_is_the_same_adapter_and_remainder():
    weight, rank = gaussian(48, 96), 6
    base = nn.Sequential(nn.Linear(96, 48, bias=False))
    base[0].weight.data = weight.clone()
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="pissa", target_modules=["0"])
    layer = get_peft_model(base, config).base_model.model[0]
    a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
    [start] = pissa(weight, nf4.quantised, rank, iterations=1)
    # PEFT decomposes in 32 bit.
    torch.testing.assert_close(start.factors.product, b @ a, rtol=0, atol=3e-5)
    torch.testing.assert_close(weight - start.factors.product, layer.base_layer.weight.data, rtol=0, atol=3e-5)
    ours = distance(weight, start.base + start.factors.product)
    theirs = distance(weight, nf4.quantised(layer.base_layer.weight.data) + b @ a)
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("iterations", [1, 4])
def test_loftq_of_peft_gives_the_same_base_and_adapter(iterations):
    pytest.importorskip("bitsandbytes", reason="PEFT's LoftQ quantises by bitsandbytes; make quant-test has it")
    weight, rank = gaussian(64, 128), 8
    base, a, b = peft_loftq(weight, rank, iterations)
    *_, start = loftq(weight, nf4.quantised, rank, iterations)
    # Where a rest lies at the boundary of two codes, rounding decides: a few in a thousand weights.
    differ = (base - start.base).abs() > 1e-4
    assert differ.float().mean() <= (0 if iterations == 1 else 5e-3)
    ours, theirs = (distance(weight, q + f) for q, f in ((start.base, start.factors.product), (base, b @ a)))
    assert ours == pytest.approx(theirs, rel=1e-5 if iterations == 1 else 1e-3)
    if iterations == 1:
        torch.testing.assert_close(start.factors.product, b @ a, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (576, 1536)])
def test_bitsandbytes_gives_the_same_codes_and_weights(shape, dtype):
    functional = pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed; make quant-test has it"
    ).functional
    weight = gaussian(*shape, dtype=dtype)
    encoded = nf4.encode(weight)
    packed, state = functional.quantize_4bit(weight, blocksize=nf4.BLOCK, quant_type="nf4")
    bytes_of_two = packed.flatten()
    codes = torch.stack([bytes_of_two >> 4, bytes_of_two & 15], dim=1).flatten()[: math.prod(shape)].view(shape)
    assert torch.equal(codes, encoded.codes)
    assert torch.equal(state.absmax, encoded.absmax)
    for name in ("nf4", "int8"):
        ours, theirs = (quantiser(name, backend)(weight) for backend in ("torch", "bitsandbytes"))
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", ["nf4", "nf4_double"])
def test_bits_are_those_that_bitsandbytes_holds(name):
    functional = pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed; make quant-test has it"
    ).functional
    weight, double = gaussian(48, 384), name == "nf4_double"
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    held = [packed, state.absmax, *([state.state2.absmax, state.offset] if double else [])]
    made = quantiser(name, "bitsandbytes")
    assert made.bits((48, 384)) == sum(8 * tensor.numel() * tensor.element_size() for tensor in held)
    assert torch.equal(made(weight), functional.dequantize_4bit(packed, state))
    assert (distance(made(weight), weight) == distance(nf4.quantised(weight), weight)) != double
    assert distance(made(weight), weight) == pytest.approx(distance(nf4.quantised(weight), weight), rel=0.02)

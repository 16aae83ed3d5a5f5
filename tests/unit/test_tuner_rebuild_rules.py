"""rowsft.tuner.rebuild: the values of a tensor from what the node that made it has saved, one small graph per rule."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from rowsft.tuner import rebuild

B, T, H, D = 2, 5, 4, 8
WIDTH = H * D


def source_of(x):
    """The source, or None where x is left to the caller."""
    found = rebuild.source_of(x)
    return found if isinstance(found, rebuild.Source) else None


def leaf(dtype=torch.float32, *shape):
    z = torch.randn(*(shape or (B, T, WIDTH)), generator=torch.Generator().manual_seed(0))
    return z.to(dtype).requires_grad_()


def frozen(dtype=torch.float32):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def attention(z, **settings):
    heads = z.view(B, T, H, D).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads.cos(), heads.sin(), **settings)


def joined(heads):
    return heads.transpose(1, 2).reshape(B, T, WIDTH)


RULES = {
    "a product, both operands saved": lambda z: z.sin() * z.cos(),
    "a product with a frozen tensor on the left": lambda z: frozen(z.dtype) * (z.sin() * z.cos()),
    "a product with a frozen tensor on the right": lambda z: (z.sin() * z.cos()) * frozen(z.dtype),
    "a product with a number": lambda z: (z.sin() * z.cos()) * 0.7,
    "a product with a mean of itself": lambda z: z * z.mean(-1, keepdim=True),
    "a product of products": lambda z: frozen(z.dtype) * (frozen(z.dtype) * (z * z.cos())),
    "silu": lambda z: functional.silu(z),
    "silu times another": lambda z: functional.silu(z.sin()) * z.cos(),
    "gelu, exact": lambda z: functional.gelu(z),
    "gelu, by tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "relu": lambda z: functional.relu(z),
    "tanh": lambda z: z.tanh(),
    "sigmoid": lambda z: z.sigmoid(),
    "an activation below a frozen product": lambda z: functional.relu(z) * frozen(z.dtype),
    "a cast to 16 bit": lambda z: (z * z.cos()).to(torch.bfloat16 if z.dtype is torch.float32 else torch.float32),
    "a frozen product after a cast": lambda z: (
        frozen(torch.bfloat16) * (z.float() * z.float().cos()).to(torch.bfloat16)
    ),
    "a frozen product before a cast": lambda z: (frozen() * (z.float() * z.float().cos())).to(torch.bfloat16),
    "operands of two dtypes": lambda z: z.float().sin() * z.bfloat16(),
    "a view": lambda z: functional.silu(z).view(-1, WIDTH),
    "a view with more dimensions": lambda z: functional.silu(z).view(B, T, H, D),
    "a transposition": lambda z: functional.silu(z).transpose(0, 1),
    "a transposition counted from the end": lambda z: functional.silu(z).transpose(-3, -2),
    "a clone": lambda z: functional.silu(z).clone(),
    "a transposition made contiguous": lambda z: functional.silu(z).transpose(0, 1).contiguous(),
    "a transposition made contiguous and viewed": lambda z: (
        functional.silu(z).transpose(0, 1).contiguous().view(-1, WIDTH)
    ),
    "a transposition reshaped": lambda z: functional.silu(z).transpose(0, 1).reshape(-1, WIDTH),
    "attention": lambda z: joined(attention(z)),
    "causal attention": lambda z: joined(attention(z, is_causal=True)),
    "attention, heads not joined": lambda z: attention(z),
    "attention, joined and flattened": lambda z: joined(attention(z)).view(-1, WIDTH),
}
#: A rule may rebuild these or leave them; what it may not do is get the shapes in between wrong.
HARD = {
    "heads apart": lambda z: functional.silu(z).view(B, T, H, D).transpose(1, 2),
    "heads apart and together": lambda z: joined(functional.silu(z).view(B, T, H, D).transpose(1, 2)),
    "heads mixed up": lambda z: functional.silu(z).view(B, T, H, D).transpose(1, 2).reshape(B, T, WIDTH),
    "two transpositions with a view between": lambda z: (
        functional.silu(z).transpose(0, 1).reshape(T, B * H, D).transpose(0, 1).reshape(B, T, WIDTH)
    ),
    "a broadcast product, viewed": lambda z: (z[:, :1].cos() * frozen(z.dtype)).expand(B, T, WIDTH),
    "a permutation": lambda z: functional.silu(z).view(B, T, H, D).permute(2, 0, 1, 3).reshape(-1, WIDTH),
    "an activation of two uses": lambda z: functional.relu(z) + functional.relu(z),
    "dropout": lambda z: functional.dropout(functional.silu(z), 0.5, training=True),
    "relu in place": lambda z: functional.relu(z * z.cos(), inplace=True),
    "silu in place": lambda z: functional.silu(z * z.cos(), inplace=True),
}


class CustomIdentity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        return g


WITHOUT_RULE = {
    "a leaf": lambda z: z,
    "no graph": lambda z: z.detach() * 2,
    "an addition": lambda z: z + 1,
    "a part": lambda z: functional.silu(z)[:, 0],
    "softmax": lambda z: z.softmax(-1),
    "a product of matrices": lambda z: z @ z.transpose(-1, -2),
    "a custom function": lambda z: CustomIdentity.apply(z),
    "a frozen product of an addition": lambda z: frozen(z.dtype) * (z + 1),
}


def check(source, x, **close) -> None:
    value = source.value()
    assert value.shape == x.shape
    assert value.dtype == x.dtype
    assert not value.requires_grad
    if close:
        torch.testing.assert_close(value, x.detach(), **close)
    else:
        assert torch.equal(value, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_rule(rule, dtype):
    x = RULES[rule](leaf(dtype))
    source = source_of(x)
    assert source is not None
    check(source, x)
    check(source, x)


@pytest.mark.parametrize("rule", HARD)
def test_rebuilt_or_left_but_never_wrong(rule):
    x = HARD[rule](leaf())
    source = source_of(x)
    if source is not None:
        check(source, x)


@pytest.mark.parametrize("rule", WITHOUT_RULE)
def test_what_has_no_rule_is_left(rule):
    assert source_of(WITHOUT_RULE[rule](leaf())) is None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_norm_is_as_exact_as_its_own_output(dtype, affine):
    """From mean and rstd, because eps is not saved: a large eps shows whoever assumes one."""
    norm = nn.LayerNorm(WIDTH, eps=0.3, elementwise_affine=affine).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(False)
    z = leaf(dtype)
    x = norm(z)
    source = source_of(x)
    assert source is not None
    check(source, x, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    exact = norm.double()(z.detach().double())
    own, rebuilt = ((each.double() - exact).norm() for each in (x.detach(), source.value()))
    assert rebuilt <= 1.5 * own + 1e-12
    assert (source.value().double() - x.double()).norm() <= 1e-6 * x.norm()


def test_layer_norm_with_statistics_of_16_bits_is_left():
    """A CPU saves them so for a 16-bit weight; what is computed from them has lost half its digits."""
    assert source_of(nn.LayerNorm(WIDTH).bfloat16()(leaf(torch.bfloat16))) is None


def test_layer_norm_over_two_dimensions():
    norm = nn.LayerNorm((T, WIDTH)).requires_grad_(False)
    x = norm(leaf())
    source = source_of(x)
    if source is not None:
        check(source, x, rtol=1e-6, atol=1e-6)


def test_attention_with_a_mask_and_fewer_heads_of_keys():
    heads = leaf(torch.float32, B, H, T, D)
    mask = torch.zeros(B, 1, T, T).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    few = heads[:, :2].cos()
    x = joined(functional.scaled_dot_product_attention(heads, few, few, attn_mask=mask, enable_gqa=True))
    source = source_of(x)
    if source is not None:
        check(source, x)


def test_a_source_does_not_hold_what_it_can_rebuild():
    x = frozen() * (leaf() * leaf().cos())
    expected, storage = x.detach().clone(), StorageWeakRef(x.untyped_storage())
    y = x.sum()
    source = source_of(x)
    del x
    assert storage.expired()
    assert torch.equal(source.value(), expected)
    value = StorageWeakRef(source.value().untyped_storage())
    assert value.expired()
    y.backward()


def test_a_chain_that_would_recompute_much_is_left():
    x = leaf() * leaf().cos()
    for _ in range(50):
        x = frozen() * x
    assert source_of(x) is None


@pytest.mark.parametrize("where", ["made inside", "asked inside"])
def test_saved_tensor_hooks(where):
    """Unpacking twice may be an error, as under checkpointing; a source must not read what hooks have packed."""
    unpacked = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(t) or t)
    z = leaf()
    if where == "made inside":
        with hooks:
            x = functional.silu(z)
        source = source_of(x)
    else:
        x = functional.silu(z)
        with hooks:
            source = source_of(x)
    assert source is None
    assert not unpacked


@pytest.mark.parametrize("grad", [True, False])
def test_a_tensor_changed_after_its_node_made_it_is_left(grad):
    x = leaf() * leaf().cos()
    with torch.set_grad_enabled(grad):
        x.add_(1)
    assert source_of(x) is None


def test_an_operand_changed_in_place_raises_as_autograd_does():
    operand = leaf().sin()
    x = operand * leaf().cos()
    source = source_of(x)
    with torch.no_grad():
        operand.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        source.value()

"""A model that changes tensors in place around a layer: an error, or the gradient of the input that the layer saw."""

import contextlib

import pytest
import torch
from dense import ran
from peft import get_peft_model
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rowsft import RowSFTConfig

B, T, WIDTH, OUT = 2, 5, 32, 24
ROWS = [3, 17, 8]
keeps = pytest.mark.parametrize("recompute", [True, False])


class Model(nn.Module):
    """`run(self, z)` calls `self.linear` on what it makes of z and of two frozen vectors."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.linear = nn.Linear(WIDTH, OUT, bias=False)
        self.scale = nn.Parameter(torch.randn(WIDTH), requires_grad=False)
        self.second = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

    def forward(self, z):
        return self.run(self, z)


def without_graph(change):
    """The same change where autograd does not record it."""

    def run(*tensors):
        with torch.no_grad():
            change(*tensors)

    return run


def before(make, change):
    """A model that changes the layer's input, once made, before the layer sees it."""

    def run(model, z):
        x = make(model, z)
        change(x)
        return model.linear(x)

    return run


def after(make, change):
    """A model that changes the layer's input after the layer has seen it."""

    def run(model, z):
        x = make(model, z)
        y = model.linear(x)
        change(x)
        return y

    return run


def heads(z):
    return z.view(B, T, 4, 8).transpose(1, 2)


MADE = {
    "frozen product": lambda model, z: model.scale * z.sin(),
    "product": lambda model, z: z.sin() * z.cos(),
    "silu": lambda model, z: functional.silu(z),
    "gelu": lambda model, z: functional.gelu(z),
    "relu": lambda model, z: functional.relu(z),
    "tanh": lambda model, z: z.tanh(),
    "layer norm": lambda model, z: functional.layer_norm(z, (WIDTH,), model.scale, model.second),
    "attention": lambda model, z: (
        functional.scaled_dot_product_attention(heads(z), heads(z).sin(), heads(z).cos())
        .transpose(1, 2)
        .reshape(B, T, WIDTH)
    ),
    "view": lambda model, z: functional.silu(z).view(-1, WIDTH),
}
CHANGES = {
    "add_": lambda x: x.add_(1),
    "mul_": lambda x: x.mul_(3),
    "relu_": lambda x: functional.relu_(x),
    "through a view": lambda x: x.view(-1)[::2].fill_(0.5),
    "through detach": lambda x: x.detach().add_(1),
}


def intermediate_changed(model, z):
    """Between its making and its use by a product that does not save it."""
    a = functional.silu(z)
    with torch.no_grad():
        a.add_(1)
    return model.linear(model.scale * a)


def intermediate_of_a_norm_changed(model, z):
    a = z * z.cos()
    with torch.no_grad():
        a.mul_(-1)
    return model.linear(model.second * a)


def operand_changed_after(model, z):
    a = z.sin()
    x = model.scale * a
    y = model.linear(x)
    with torch.no_grad():
        a.add_(1)
    return y


def saved_operand_changed_after(model, z):
    a = z.sin()
    y = model.linear(a * z.cos())
    with torch.no_grad():
        a.add_(1)
    return y


def scale_changed_after(model, z):
    y = model.linear(model.scale * z.sin())
    with torch.no_grad():
        model.scale.mul_(3)
    return y


def scale_replaced_after(model, z):
    y = model.linear(model.scale * z.sin())
    model.scale.data = model.scale.data * 3
    return y


def leaf_changed_after(model, z):
    y = model.linear(model.scale * z)
    with torch.no_grad():
        z.add_(1)
    return y


def residual_added_in_place(model, z):
    x = model.scale * z.sin()
    y = model.linear(x)
    x[..., :OUT] += y
    return x


def base_of_a_view_changed(model, z):
    x = model.scale * z.sin()
    view = x.view(-1, WIDTH)
    with torch.no_grad():
        x.add_(1)
    return model.linear(view)


def buffer_used_again(model, z):
    """Two inputs in one buffer, as code does that saves allocations."""
    x = model.scale * z.sin()
    first = model.linear(x)
    with torch.no_grad():
        x.copy_(z.cos())
    return first + model.linear(x)


OTHERS = (
    intermediate_changed,
    intermediate_of_a_norm_changed,
    operand_changed_after,
    saved_operand_changed_after,
    scale_changed_after,
    scale_replaced_after,
    leaf_changed_after,
    residual_added_in_place,
    base_of_a_view_changed,
    buffer_used_again,
)


def adapted(run, recompute):
    torch.manual_seed(0)
    config = RowSFTConfig(target_modules=["linear"], row_ids={"linear": ROWS}, recompute_inputs=recompute)
    tuned = get_peft_model(Model(run), config)
    layer = tuned.base_model.model.linear
    with torch.no_grad():
        layer.row_sft_delta["default"].normal_()
    return tuned, layer


def check(run, recompute) -> bool:
    """Assert that backward gives dY[:, rows]^T X of the X that the layer saw; False where it was refused."""
    tuned, layer = adapted(run, recompute)
    inputs, output_gradients = [], []

    def watch(module, args, output):
        inputs.append(args[0].detach().clone().reshape(-1, WIDTH))
        output.register_hook(lambda grad: output_gradients.insert(0, grad.reshape(-1, OUT)))

    layer.register_forward_hook(watch)
    z = torch.randn(B, T, WIDTH, requires_grad=True)

    def backward():
        tuned(z).square().sum().backward()

    if not ran(backward):
        return False
    expected = sum(grad[:, ROWS].t() @ x for grad, x in zip(output_gradients, inputs, strict=True))
    assert len(inputs) == len(output_gradients) > 0
    torch.testing.assert_close(layer.row_sft_delta["default"].grad, expected, rtol=1e-4, atol=1e-5)
    return True


@keeps
@pytest.mark.parametrize("made", MADE)
def test_an_input_that_nobody_changes(made, recompute):
    assert check(before(MADE[made], lambda x: None), recompute)


@keeps
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("when", [before, after])
def test_an_input_changed_in_place(when, made, change, grad, recompute):
    check(when(MADE[made], CHANGES[change] if grad else without_graph(CHANGES[change])), recompute)


@keeps
@pytest.mark.parametrize("run", OTHERS)
def test_another_tensor_changed_in_place(run, recompute):
    check(run, recompute)


def in_a_checkpoint(reentrant):
    def run(model, z):
        x = checkpoint(lambda each: functional.silu(each.sin()) * each.cos(), z, use_reentrant=reentrant)
        return model.linear(x)

    return run


@keeps
@pytest.mark.parametrize("reentrant", [True, False])
def test_an_input_made_inside_a_checkpoint_and_used_outside(reentrant, recompute):
    """Whoever reads what the checkpoint's hooks have packed makes it recompute twice, which it refuses."""
    assert check(in_a_checkpoint(reentrant), recompute)


class Offloaded:
    """Hooks that count, and that cannot unpack the same tensor twice."""

    def __init__(self):
        self.held = []

    def pack(self, tensor):
        self.held.append(tensor)
        return len(self.held) - 1

    def unpack(self, position):
        tensor, self.held[position] = self.held[position], None
        assert tensor is not None, "unpacked twice"
        return tensor


@pytest.mark.parametrize("hooks", ["single use", "save_on_cpu"])
def test_inputs_under_saved_tensor_hooks_are_kept(hooks):
    offloaded = Offloaded()
    contexts = {
        "single use": lambda: torch.autograd.graph.saved_tensors_hooks(offloaded.pack, offloaded.unpack),
        "save_on_cpu": lambda: torch.autograd.graph.save_on_cpu(),
    }

    def run(model, z):
        with contexts[hooks]():
            return model.linear(functional.silu(z) * z.cos())

    assert check(run, True)
    tuned, _ = adapted(run, True)
    tuned(torch.randn(B, T, WIDTH, requires_grad=True))
    assert tuned.base_model.input_sources() == {"linear": "kept: saved-tensor hooks are active"}


@keeps
@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_that_is_off_or_on_when_the_backward_runs(enabled, recompute):
    def run(model, z):
        with torch.autocast("cpu", torch.bfloat16):
            return model.linear(functional.silu(z) * z.cos()).float()

    gradients = []
    for recomputes in (recompute, False):
        tuned, layer = adapted(run, recomputes)
        torch.manual_seed(1)
        loss = tuned(torch.randn(B, T, WIDTH, requires_grad=True)).square().sum()
        with torch.autocast("cpu", torch.bfloat16) if enabled else contextlib.nullcontext():
            loss.backward()
        gradients.append(layer.row_sft_delta["default"].grad)
    assert torch.equal(*gradients)

"""A layer's input X without keeping it: computed again from what the graph of the frozen network keeps anyway.

X is nearly always a cheap function of tensors that autograd has saved for the node that made it: a norm's weight times
the normalised input, act(gate) * up, gelu(h), the output that fused attention saves for itself. `source_of(x)` looks at
that node, `Source.value()` computes X from it. A rule says how for one kind of node; everything without a rule is left
to the caller, who keeps X. Nothing here knows a model.

A node is upstream of the layer in the same graph, so holding it makes no cycle and keeps nothing alive for longer.
Reading what a node has saved checks version counters as autograd itself does: a tensor that was changed in place in
between is an error and never a wrong X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import Node
from torch.nn import functional

from . import passes

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks

#: Nodes that one X may be computed through: a handful of elementwise operators, with views between them.
MOST_NODES = 10


@dataclass(frozen=True)
class Operand:
    """What a rule computes from: a saved tensor, where it was saved, or else the value of a node further up."""

    saved: str | None = None
    above: int | None = None
    optional: bool = False

    def __post_init__(self):
        object.__setattr__(self, "_saved", f"_saved_{self.saved}")
        object.__setattr__(self, "_raw", f"_raw_saved_{self.saved}")

    def obstacle(self, node: Node, room: list[int]) -> str | None:
        """Why it cannot be had; None when it can."""
        if self.saved is not None:
            # torch 2.8 does not tell; 2.11 does.
            if getattr(node, self._raw).unpack_hook is not None:
                return "saved-tensor hooks hold an operand"
            try:
                if self.optional or getattr(node, self._saved) is not None:
                    return None
            except RuntimeError:
                return "an operand was changed in place"
        if self.above is None:
            return f"{_name(node)} has not saved {self.saved}"
        return _obstacle(*node.next_functions[self.above], room)

    def value(self, node: Node) -> Tensor | None:
        held = None if self.saved is None else getattr(node, self._saved)
        if held is not None or self.above is None:
            return held
        return _value(node.next_functions[self.above][0])


@dataclass(frozen=True)
class Rule:
    """compute(node, *operands) -> what the node's forward returned first. unless(node): why it is not to be used."""

    operands: tuple[Operand, ...]
    compute: Callable[..., Tensor]
    unless: Callable[[Node], str | None] | None = None


RULES: dict[str, Rule] = {}


def rule(*names: str, operands: tuple[Operand, ...], **settings) -> Callable:
    """Make the decorated function the rule for nodes of these classes; `settings` as in `Rule`."""

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        RULES.update(dict.fromkeys(names, Rule(operands, compute, **settings)))
        return compute

    return register


# The tensors multiplied are saved only where the other one needs a gradient.
@rule("MulBackward0", operands=(Operand("self", 0), Operand("other", 1)))
def product(node, left, right):
    return left * right


@rule("SiluBackward0", operands=(Operand("self"),))
def silu(node, inputs):
    return functional.silu(inputs)


@rule("GeluBackward0", operands=(Operand("self"),))
def gelu(node, inputs):
    return functional.gelu(inputs, approximate=node._saved_approximate)


@rule("ReluBackward0", "TanhBackward0", "SigmoidBackward0", operands=(Operand("result"),))
def saved_result(node, result):
    return result


@rule("PowBackward0", operands=(Operand("self"),))
def power(node, inputs):
    return inputs.pow(node._saved_exponent)


def _has_short_statistics(node: Node) -> str | None:
    # A CPU keeps them in the dtype of the norm's weight; half the digits would be lost.
    return "a norm's statistics have 16 bits" if node._saved_result1.dtype.itemsize < 4 else None


@rule(
    "NativeLayerNormBackward0",
    unless=_has_short_statistics,
    operands=(
        Operand("input"),
        Operand("result1"),
        Operand("result2"),
        Operand("weight", optional=True),
        Operand("bias", optional=True),
    ),
)
def layer_norm(node, inputs, mean, deviation, weight, bias):
    # From the saved statistics: eps is not saved. Computed in their 32 bit and rounded once, as the kernel does.
    normal = (inputs - mean).mul_(deviation)
    if weight is not None:
        normal.mul_(weight)
    if bias is not None:
        normal.add_(bias)
    return normal.to(inputs.dtype)


@rule(
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "ScaledDotProductFusedAttentionOverrideableBackward0",
    operands=(Operand("output"),),
)
def attention(node, output):
    return output


@rule("TransposeBackward0", operands=(Operand(above=0),))
def transposed(node, inputs):
    return inputs.transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))


@rule("PermuteBackward0", operands=(Operand(above=0),))
def permuted(node, inputs):
    return inputs.permute([_signed(dim) for dim in node._saved_dims])


@rule("TBackward0", operands=(Operand(above=0),))
def turned(node, inputs):
    return inputs.t()


# Their result's shape and dtype are in the node's own description.
@rule(
    "CloneBackward0",
    "ToCopyBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "AliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "UnsqueezeBackward0",
    operands=(Operand(above=0),),
)
def alike(node, inputs):
    [described, *_] = node._input_metadata
    return inputs.to(described.device, described.dtype).reshape(described.shape)


class Source:
    """Where a layer's input can be had from in the backward pass; shared by the layers that read the same input."""

    def __init__(self, node: Node):
        self.node = node
        self.label = f"rebuilt: {_name(node)}"
        self.users = 0
        self._pass = self._left = 0
        self._value: Tensor | None = None
        self._gives: bool | None = None

    @torch.no_grad()
    def value(self) -> Tensor:
        """The input itself, without a history."""
        return self._computed().detach()

    def _computed(self) -> Tensor:
        if torch._C._is_any_autocast_enabled():
            with torch.autocast(self.node._input_metadata[0].device.type, enabled=False):
                return _value(self.node)
        return _value(self.node)

    def gives(self, x: Tensor) -> bool:
        """Whether the value is x, up to the rounding of a norm.

        Looked at once a layer: model code that changes a tensor in place under no_grad, further up, is seen by no rule.
        """
        if self._gives is None:
            own = self.value()
            # Norms are computed in 32 bit or wider and rounded once; all else comes out to the bit.
            eps = torch.finfo(x.dtype).eps
            wide = 16 * min(eps, torch.finfo(torch.float32).eps)
            self._gives = torch.allclose(own, x, rtol=4 * eps, atol=wide * x.abs().amax().item(), equal_nan=True)
        return self._gives

    def used(self) -> Source:
        """One user of `shared_value` more."""
        self.users += 1
        return self

    def shared_value(self) -> Tensor:
        """The same in a backward pass, computed once for all users and dropped by the last of them."""
        if self.users == 1:
            return self._computed()
        if self._value is None or self._pass != passes.current():
            self._pass, self._left, self._value = passes.current(), self.users, self._computed()
            # A pass that needs some gradients only ends before the last user's turn.
            passes.at_end(self)
        value = self._value
        self._left -= 1
        if self._left == 0:
            self._value = None
        return value

    def pass_ended(self) -> None:
        self._value = None


def source_of(x: Tensor) -> Source | str:
    """Where x can be had from once it is gone, or why it has to be kept.

    Called while the graph is recorded; who goes on to need the source in backward says so by `Source.used`.
    """
    node = x.grad_fn
    if node is None:
        return "the input has no history"
    if x._version:
        # Its node does not know of a change under no_grad.
        return "the input was changed in place"
    if _hooks_are_active():
        return "saved-tensor hooks are active"
    known = x.__dict__.get("_row_sft_source")
    if known is not None and known.node is node:
        return known
    if type(x) is not Tensor and not isinstance(x, FakeTensor):
        return f"the input is a {type(x).__name__}"
    obstacle = _obstacle(node, x.output_nr, [MOST_NODES])
    if obstacle is not None:
        return obstacle
    x._row_sft_source = source = Source(node)
    return source


def _obstacle(node: Node | None, number: int, room: list[int]) -> str | None:
    """Why output `number` of a node's forward cannot be computed; `room` counts the nodes that are still allowed."""
    if node is None:
        return "an operand has no history"
    known = RULES.get(_name(node))
    if known is None:
        return f"no rule for {_name(node)}"
    if number:
        return f"output {number} of {_name(node)}"
    room[0] -= 1
    if room[0] < 0:
        return f"more than {MOST_NODES} operators"
    for operand in known.operands:
        if (why := operand.obstacle(node, room)) is not None:
            return why
    return None if known.unless is None else known.unless(node)


def _value(node: Node) -> Tensor:
    known = RULES[_name(node)]
    return known.compute(node, *[operand.value(node) for operand in known.operands])


def _hooks_are_active() -> bool:
    """Whether whatever is saved now goes through hooks, as under non-reentrant checkpointing or offloading."""
    return _top_hooks(True) is not None


def _name(node: Node) -> str:
    return type(node).__name__


def _signed(dim: int) -> int:
    """Negative dims are saved as unsigned numbers of 64 bits."""
    return dim - 2**64 if dim >= 2**63 else dim

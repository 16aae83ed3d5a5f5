"""How the value of a tensor is computed from what the node that made it has saved: one rule for each kind of node.

The names are those that torch generates for its operators; a node that has no rule here, or has saved something else
than its rule reads, is an obstacle and no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from rowsft.compat.torch import first_output, kind_of, saved, saved_by_hooks

#: Nodes that one X may be computed through: a handful of elementwise operators, with views between them.
MOST_NODES = 10


@dataclass(frozen=True)
class Operand:
    """What a rule computes from: a saved tensor, where it was saved, or else the value of a node further up."""

    saved: str | None = None
    above: int | None = None
    optional: bool = False

    def obstacle(self, node: Node, room: list[int]) -> str | None:
        """Why it cannot be had; None when it can."""
        if self.saved is not None:
            if saved_by_hooks(node, self.saved):
                return "saved-tensor hooks hold an operand"
            try:
                if self.optional or saved(node, self.saved) is not None:
                    return None
            except RuntimeError:
                return "an operand was changed in place"
        if self.above is None:
            return f"{kind_of(node)} has not saved {self.saved}"
        return obstacle_of(*node.next_functions[self.above], room)

    def value(self, node: Node) -> Tensor | None:
        own = None if self.saved is None else saved(node, self.saved)
        above = None if own is not None or self.above is None else node.next_functions[self.above][0]
        return own if above is None else value_of(above)


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
    return functional.gelu(inputs, approximate=saved(node, "approximate"))


@rule("ReluBackward0", "TanhBackward0", "SigmoidBackward0", operands=(Operand("result"),))
def saved_result(node, result):
    return result


@rule("PowBackward0", operands=(Operand("self"),))
def power(node, inputs):
    return inputs.pow(saved(node, "exponent"))


def _has_short_statistics(node: Node) -> str | None:
    # A CPU keeps them in the dtype of the norm's weight; half the digits would be lost.
    return "a norm's statistics have 16 bits" if saved(node, "result1").dtype.itemsize < 4 else None


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
    return inputs.transpose(_signed(saved(node, "dim0")), _signed(saved(node, "dim1")))


@rule("PermuteBackward0", operands=(Operand(above=0),))
def permuted(node, inputs):
    return inputs.permute([_signed(dim) for dim in saved(node, "dims")])


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
    described = first_output(node)
    return inputs.to(described.device, described.dtype).reshape(described.shape)


def obstacle_of(node: Node | None, number: int, room: list[int]) -> str | None:
    """Return why output `number` of a node's forward cannot be computed, or None; room: nodes still allowed."""
    if node is None:
        return "an operand has no history"
    known = RULES.get(kind_of(node))
    if known is None:
        return f"no rule for {kind_of(node)}"
    if number:
        return f"output {number} of {kind_of(node)}"
    room[0] -= 1
    if room[0] < 0:
        return f"more than {MOST_NODES} operators"
    for operand in known.operands:
        if (why := operand.obstacle(node, room)) is not None:
            return why
    return None if known.unless is None else known.unless(node)


def value_of(node: Node) -> Tensor:
    """Return what the forward of a node without an obstacle returned first."""
    known = RULES[kind_of(node)]
    return known.compute(node, *[operand.value(node) for operand in known.operands])


def _signed(dim: int) -> int:
    """Negative dims are saved as unsigned numbers of 64 bits."""
    return dim - 2**64 if dim >= 2**63 else dim

"""A layer's input X without keeping it: computed again from what the graph of the frozen network keeps anyway.

X is nearly always a cheap function of tensors that autograd has saved for the node that made it: a norm's weight times
the normalised input, act(gate) * up, gelu(h), the output that fused attention saves for itself. `source_of(x)` looks at
that node, `Source.value()` computes X from it (rules.py: one rule for each kind of node). All without a rule is left to
the caller, who keeps X. Nothing here knows a model.

A node is upstream of the layer in the same graph, so holding it makes no cycle and keeps nothing alive for longer.
Reading what a node has saved checks version counters as autograd itself does: a tensor that was changed in place in
between is an error and never a wrong X.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from rowsft.compat.torch import (
    FakeTensor,
    autocast_is_on,
    backward_pass,
    first_output,
    hooks_on_saved_tensors,
    kind_of,
    version_of,
)

from . import passes
from .rules import MOST_NODES, obstacle_of, value_of

#: Where an input keeps its source, for the next layer that reads it.
_KNOWN = "_row_sft_source"


class Source:
    """Where a layer's input can be had from in the backward pass; shared by the layers that read the same input."""

    def __init__(self, node: Node):
        self.node = node
        self.label = f"rebuilt: {kind_of(node)}"
        self.users = 0
        self._pass = self._left = 0
        self._value: Tensor | None = None
        self._gives: bool | None = None

    @torch.no_grad()
    def value(self) -> Tensor:
        """The input itself, without a history."""
        return self._computed().detach()

    def _computed(self) -> Tensor:
        if autocast_is_on():
            with torch.autocast(first_output(self.node).device.type, enabled=False):
                return value_of(self.node)
        return value_of(self.node)

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
        if self._value is None or self._pass != backward_pass():
            self._pass, self._left, self._value = backward_pass(), self.users, self._computed()
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
    if version_of(x):
        # Its node does not know of a change under no_grad.
        return "the input was changed in place"
    if hooks_on_saved_tensors():
        return "saved-tensor hooks are active"
    known = vars(x).get(_KNOWN)
    if known is not None and known.node is node:
        return known
    if type(x) is not Tensor and not isinstance(x, FakeTensor):
        return f"the input is a {type(x).__name__}"
    obstacle = obstacle_of(node, x.output_nr, [MOST_NODES])
    if obstacle is not None:
        return obstacle
    vars(x)[_KNOWN] = source = Source(node)
    return source

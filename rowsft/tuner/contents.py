"""What a base weight holds: the originals, or updates written over them for as long as a forward or a graph needs them.

The rule: a base weight is W0, bit for bit, whenever no forward runs and no graph waits for its backward. Whoever needs
the weight to stay as it is claims it. The first claim writes, the last one to go restores. A recorded forward's claim
goes when the backward pass has ended or when its graph is dropped; a forward without a graph claims for its own time;
merging claims until it is undone.

Writes go through `.data`, which leaves the version counter alone: a graph that has saved the weight, and may run its
backward more than once, finds the values that it saw. Where a waiting graph loses them, the counter is raised, so that
autograd refuses its backward.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rowsft.compat.torch import version_of
from rowsft.errors import UserError

from . import passes
from .base import BaseTensors
from .patch import Blocks, Patch
from .update import Update

#: The base weights that are claimed, by where they lie: layers that share a weight meet here. Empty at rest.
_claimed: dict[int, Contents] = {}
# Reentrant: a claim may be dropped by the garbage collector while another one is made.
_lock = threading.RLock()


class Contents:
    """What one claimed base weight (with its bias) holds: `updates` through `patch`, or the originals (None)."""

    __slots__ = ("base", "claims", "layer_name", "outdated", "patch", "state", "updates", "versions")

    def __init__(self, layer_name: str, base: BaseTensors):
        self.layer_name = layer_name
        self.base = base
        self.patch: Patch | None = None
        self.updates: list[Update] = []
        self.state: list[list[tuple]] = []
        self.claims = 0
        self.outdated = False
        self.versions = self._versions_now()

    def holds(self, patch: Patch | None, updates: list[Update]) -> bool:
        """Whether the weight holds these updates, or the originals for none, though maybe with earlier values.

        Other tensors in the same places, as in a functional call, are other updates.
        """
        if not updates or self.patch is None:
            return not updates and self.patch is None
        return (self.patch is patch or self.patch.fits(updates)) and _tensors(self.state) == _tensors(_state(updates))

    def is_current(self, updates: list[Update]) -> bool:
        """Whether what it holds are the values that the updates have now."""
        return self.patch is None or (not self.outdated and self.state == _state(updates))

    def write(self, patch: Patch | None, updates: list[Update]) -> None:
        """Write the updates over the originals, which the weight holds."""
        self.patch, self.updates, self.state, self.outdated = patch, updates, _state(updates), False
        if patch is not None:
            patch.write(self.base.tensors, updates)

    def rewrite(self, updates: list[Update]) -> None:
        """Bring what it holds up to date. Graphs that wait for the earlier values are refused from now on."""
        patch = self.patch
        assert patch is not None, "the originals are always current"
        self.check_untouched()
        values = patch.values(updates)
        if not self._stands(patch, values):
            patch.put(self.base.tensors, values)
            self.refuse_waiting_graphs()
        self.updates, self.state, self.outdated = updates, _state(updates), False

    def release(self) -> None:
        """One claim less; the last one restores the originals."""
        with _lock:
            self.claims -= 1
            if self.claims == 0 and _claimed.get(self.base.key) is self:
                del _claimed[self.base.key]
                self.restore()

    def end(self) -> None:
        """Restore the originals now, whoever still claims the weight: their backward is refused."""
        with _lock:
            if _claimed.pop(self.base.key, None) is self:
                self.restore()
                self.refuse_waiting_graphs()

    def keep(self) -> None:
        """Leave what is written in the weight for good: it is the weight's own from now on."""
        with _lock:
            _claimed.pop(self.base.key, None)
            self.patch = None

    def restore(self) -> None:
        if self.patch is not None:
            patch, self.patch = self.patch, None
            self.check_untouched(patch)
            patch.restore(self.base.tensors)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The originals are in the weight for the time of the block."""
        with self._locked():
            self.check_untouched()
            if (patch := self.patch) is None:
                yield
                return
            written = patch.blocks(self.base.tensors)
            patch.restore(self.base.tensors)
            try:
                yield
            finally:
                # None where the block has moved the model, which ends all claims.
                if self.patch is not None:
                    self.patch.put(self.base.tensors, written)

    def originals(self) -> dict[str, torch.Tensor]:
        """A copy of the weight (and bias) with the originals in it."""
        with self._locked():
            copies = {name: tensor.clone() for name, tensor in self.base.tensors.items()}
            if self.patch is not None:
                self.patch.restore(copies)
        return copies

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """What it holds stays for the time of the block, though the collector drop the last graph that needs it."""
        self.claims += 1
        try:
            yield
        finally:
            self.release()

    def refuse_waiting_graphs(self) -> None:
        """Let autograd see that the weight has changed."""
        for parameter in self.base.versioned:
            torch.autograd.graph.increment_version(parameter)
        self.versions = self._versions_now()

    def check_untouched(self, patch: Patch | None = None) -> None:
        """Refuse to go on when somebody else has written the weight meanwhile, unless with what it held.

        DDP does the latter when it wraps a model: it broadcasts the first process's tensors to all.
        """
        patch = patch or self.patch
        if patch is None or self.versions == self._versions_now():
            return
        if not self._stands(patch, patch.values(self.updates)):
            raise UserError(
                f"the base weight of layer {self.layer_name} was changed while adapter values were written in it "
                "(merged, or for a graph that waits for its backward), so the originals of the chosen rows are "
                "lost; unmerge, or drop the outputs of the last forward, before changing it"
            )
        self.versions = self._versions_now()

    def _stands(self, patch: Patch, blocks: Blocks) -> bool:
        """Whether the entries hold just that."""
        return all(
            own is None or (there is not None and torch.equal(there, own))
            for there, own in zip(patch.blocks(self.base.tensors), blocks, strict=True)
        )

    def _versions_now(self) -> list[int]:
        return [version_of(each) for each in self.base.versioned]


class Claim:
    """One forward's claim on a base weight: it stays as that forward saw it until the claim is released or dropped."""

    __slots__ = ("__weakref__", "contents", "live", "patch", "state", "updates")

    def __init__(self, contents: Contents, patch: Patch | None, updates: list[Update]):
        self.contents, self.patch, self.updates = contents, patch, updates
        self.state = contents.state
        self.live = True
        contents.claims += 1

    def release(self) -> None:
        if self.live:
            self.live = False
            self.contents.release()

    def during_backward(self) -> None:
        """Called before the base layer's backward: a retained graph's second pass finds the originals.

        Raises:
            RuntimeError: as autograd does, when the values have changed since the graph was recorded.
        """
        if not self.live:
            with _lock:
                self._renew()
        passes.at_end(self)

    def pass_ended(self) -> None:
        self.contents.outdated = True
        self.release()

    def _renew(self) -> None:
        old = self.contents
        unchanged = self.state == _state(self.updates) and old.base.has_not_moved()
        contents = _claimed.get(old.base.key)
        if contents is not None:
            contents.claims += 1
        if contents is None and unchanged:
            contents = _claimed[old.base.key] = Contents(old.layer_name, old.base)
            contents.claims = 1
            contents.write(self.patch, self.updates)
        elif contents is None or not contents.holds(self.patch, self.updates) or contents.state != self.state:
            if contents is not None:
                contents.release()
            raise RuntimeError(
                f"the values written into layer {old.layer_name} have changed since this graph was recorded, by an "
                "optimizer step or by a forward with other adapters; run the second backward before, or forward again"
            )
        self.contents = contents
        self.live = True

    def __del__(self):
        try:
            self.release()
        except UserError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def contents_of(base: BaseTensors) -> Contents | None:
    """What a base weight holds, if anybody claims it."""
    return _claimed.get(base.key)


def claim(
    layer_name: str, base: BaseTensors, patch: Patch | None, updates: list[Update], recorded: bool
) -> Claim | None:
    """Claim a base weight with these updates, or with its originals for none, and write them if they are not there.

    None where waiting graphs need something else in it: other adapters' updates or, unless this forward is recorded
    too, values from before an optimizer step. Optimizers may write through `.data` or raw pointers, which no version
    counter sees: after a backward pass what is still written counts as outdated.
    """
    with _lock:
        contents = _claimed.get(base.key)
        if contents is None:
            contents = _claimed[base.key] = Contents(layer_name, base)
            made = Claim(contents, patch, updates)
            contents.write(patch, updates)
            made.state = contents.state
            return made
        # Counted before anything is allocated: whatever the collector drops from here on, the weight stays.
        contents.claims += 1
        made = Claim(contents, patch, updates)
        contents.claims -= 1
        if not contents.holds(patch, updates):
            made.release()
            return None
        if not contents.is_current(updates):
            if not recorded:
                made.release()
                return None
            contents.rewrite(updates)
            made.state = contents.state
        return made


def _state(updates: list[Update]) -> list[list[tuple]]:
    return [update.state for update in updates]


def _tensors(state: list[list[tuple]]) -> list[list]:
    """Where the values lie, whatever they are."""
    return [[stamp[:1] for stamp in update] for update in state]

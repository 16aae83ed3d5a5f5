"""Which cards hold a run: bytes of tensors, the device's own context, and a margin for fragmentation."""

from dataclasses import dataclass

# Sizes by which cards are sold, in GB of 10**9 bytes: a card reports a little more than that to its driver.
CARDS_GB = (16, 24, 40, 48, 80, 141)
# What a process holds on a GPU besides tensors: the CUDA context and the libraries' workspaces.
CONTEXT_BYTES = 10**9
# A caching allocator cannot use every gap between tensors.
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Demand:
    """Bytes of tensors at the peak, and what a card has to have for them."""

    tensor_bytes: int

    @property
    def card_bytes(self) -> int:
        """Tensors with the margin for fragmentation, and the context."""
        return int(self.tensor_bytes * (1 + FRAGMENTATION)) + CONTEXT_BYTES

    def fits(self, card_gb: float) -> bool:
        """Whether a card of that size holds it."""
        return self.card_bytes <= card_gb * 10**9

    def cards(self) -> dict[int, bool]:
        """Card size in GB -> whether it holds it."""
        return {size: self.fits(size) for size in CARDS_GB}

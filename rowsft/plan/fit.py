"""Which cards hold a run: bytes of tensors, the device's own context, and a margin for fragmentation."""

import re
from dataclasses import dataclass

from rowsft.errors import UserError

MIB = 2**20
# MiB that nvidia-smi reports as a card's memory, whatever size it is sold as. H100 80GB, A100, A10, L40S, L4, T4 as in
# github.com/modal-labs/modal-client/pull/2797 (nvidia-smi of each); the others as in nvidia-smi's output in public
# reports, such as github.com/noonghunna/club-3090/issues/741 (RTX 3090, RTX 5090) and
# github.com/wookayin/gpustat/issues/130 (16 GB of that generation).
CARDS_MIB = {
    "T4": 15_360,
    "V100 16GB": 16_384,
    "A10": 23_028,
    "L4": 23_034,
    "RTX 4090": 24_564,
    "RTX 3090": 24_576,
    "RTX 5090": 32_607,
    "V100 32GB": 32_768,
    "A100 40GB": 40_960,
    "L40S": 46_068,
    "RTX 6000 Ada": 49_140,
    "H100 80GB": 81_559,
    "A100 80GB": 81_920,
    "H200": 143_771,
    "B200": 183_359,
}
# The sizes that cards are called by: `--card 24` is that of a card that is sold as one of 24 GB.
_SOLD_AS = {
    16: "V100 16GB",
    24: "RTX 4090",
    32: "RTX 5090",
    40: "A100 40GB",
    48: "RTX 6000 Ada",
    80: "H100 80GB",
    141: "H200",
    180: "B200",
    192: "B200",
}
# What nvidia-smi says of a card besides its name: how it is plugged in, its kind of memory. (NVL is another card.)
_BESIDE_THE_NAME = re.compile(r"nvidia|geforce|tesla|sxm\d?|pcie|hbm\de?|generation")
# Larger than any card: a number beyond it is the name of one that is not known here (3060), no size.
_LARGEST_GIB = 1000
# What a process holds on a GPU besides tensors: the CUDA context and the libraries' workspaces.
CONTEXT_BYTES = 2**30
# A caching allocator cannot use every gap between tensors.
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Card:
    """A card by its name, and the bytes that it reports."""

    name: str
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes // MIB:,} MiB)"


CARDS = [Card(name, mib * MIB) for name, mib in CARDS_MIB.items()]


def card_of(text: str) -> Card:
    """The card called `text` (H100, rtx-4090, A100 40, or as nvidia-smi has it: NVIDIA A100-SXM4-80GB), or sold as so
    many GB; a number that no card is sold as is GiB.

    Raises UserError for an unknown name, a name of two cards, and a size that no card has.
    """
    words = re.split(r"(?<=\w)[\s_-]+(?=\w)", text.strip().lower())
    plain = "".join(word for word in words if not _BESIDE_THE_NAME.fullmatch(word))
    plain = re.sub(r"^(nvidia)?(geforce|tesla)?(?=\w)", "", plain)
    cards = _BY_FORM.get(plain, [])
    if len(cards) == 1:
        return cards[0]
    if cards:
        raise UserError(f"--card {text}: is sold as {' and '.join(card.name for card in cards)}; name one of them")
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)(gb|gib)?", plain)
    size, unit = (float(number[1]), number[2]) if number else (0.0, None)
    if not 0 < size < _LARGEST_GIB:
        raise UserError(
            f"--card {text}: expected the card's memory in GB, such as 24, or its name: {', '.join(CARDS_MIB)}"
        )
    if size in _SOLD_AS and unit != "gib":
        return next(card for card in CARDS if card.name == _SOLD_AS[int(size)])
    return Card(f"{size:g} GiB", int(size * 2**30))


def _forms(name: str) -> set[str]:
    """What a card may be called: with its size or without, with the maker's series or without."""
    whole = name.lower().replace(" ", "")
    return {whole, whole.removesuffix("gb"), whole.removeprefix("rtx"), re.sub(r"\d\dgb$", "", whole)}


_BY_FORM: dict[str, list[Card]] = {}
for _card in CARDS:
    for _form in _forms(_card.name):
        _BY_FORM.setdefault(_form, []).append(_card)


@dataclass(frozen=True)
class Demand:
    """Bytes of tensors at the peak, and what a card has to have for them."""

    tensor_bytes: int

    @property
    def card_bytes(self) -> int:
        """Tensors with the margin for fragmentation, and the context."""
        return int(self.tensor_bytes * (1 + FRAGMENTATION)) + CONTEXT_BYTES

    def fits(self, card: Card) -> bool:
        """Whether the card holds it."""
        return self.card_bytes <= card.memory_bytes

    def cards(self) -> dict[str, bool]:
        """Name of every known card -> whether it holds it."""
        return {card.name: self.fits(card) for card in CARDS}

"""One colour and one marker a method, the same in every picture, in Okabe and Ito's colour-blind safe palette."""

from collections.abc import Mapping
from itertools import cycle

from rowsft.method_info import MethodInfo

_SPARE = [("#E69F00", "<"), ("#882255", ">"), ("#999933", "h")]


def looks(infos: Mapping[str, MethodInfo]) -> dict[str, tuple[str, str]]:
    """Return {method: (colour, matplotlib marker)}; methods without a colour share the spare ones, by name."""
    spare = dict(zip(sorted(name for name, info in infos.items() if info.colour is None), cycle(_SPARE), strict=False))
    return {name: spare.get(name) or (str(info.colour), info.marker) for name, info in infos.items()}

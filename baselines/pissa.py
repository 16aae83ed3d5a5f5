"""PiSSA (Meng et al., arXiv 2404.02948) through PEFT: LoRA that starts from the largest singular values of W."""

from dataclasses import dataclass, replace
from typing import ClassVar

from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method
from rowsft.methods.residual import ResidualMethod


@dataclass
class Pissa(ResidualMethod, Lora):
    """A and B are W's r largest singular values and vectors, taken out of W. Keys: conf/method/pissa.yaml.

    PEFT's fast decomposition draws random numbers, from the stream that a run's seed sets before it attaches. Left out:
    quantising the residual (QPiSSA).
    """

    info: ClassVar[MethodInfo] = replace(Lora.info, name="pissa", title="PiSSA", order=33, colour="#882255", marker="*")
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    scaling: float | None = 1.0
    niter: int | None = 16

    def __post_init__(self):
        super().__post_init__()
        if self.niter is not None and self.niter < 0:
            raise UserError(
                f"method.niter={self.niter}: expected a whole number, 0 or more, or null for an exact start"
            )

    @property
    def initialisation(self) -> str:
        """PEFT's name of the exact decomposition, or of the fast one with its iterations."""
        return "pissa" if self.niter is None else f"pissa_niter_{self.niter}"


METHOD: type[Method] = Pissa

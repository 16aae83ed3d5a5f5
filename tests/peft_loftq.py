"""PEFT's own LoftQ on a machine without a GPU."""

from torch import Tensor
from torch.overrides import TorchFunctionMode


class _OnThisProcessor(TorchFunctionMode):
    """PEFT moves every weight to a GPU before it computes; here it stays where it is."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def placed(value):
            return "cpu" if str(value) == "cuda" else value

        return function(*map(placed, args), **{key: placed(value) for key, value in (kwargs or {}).items()})


def peft_loftq(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The base after decoding (d_out, d_in), A (r, d_in) and B (d_out, r) that PEFT starts from; needs bitsandbytes."""
    from peft.utils.loftq_utils import loftq_init

    with _OnThisProcessor():
        return loftq_init(weight, num_bits=4, reduced_rank=rank, num_iter=iterations)

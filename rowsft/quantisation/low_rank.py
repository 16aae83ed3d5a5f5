"""The best approximation of a matrix by one of low rank, as the two factors of an adapter."""

from typing import NamedTuple

import torch
from scipy.linalg import eigh
from torch import Tensor


class Factors(NamedTuple):
    """B (d_out, r) and A (r, d_in) of a product B A, the singular values shared evenly between them, float32."""

    b: Tensor
    a: Tensor

    @property
    def product(self) -> Tensor:
        """B A, float32 (d_out, d_in)."""
        return self.b @ self.a


def principal(matrix: Tensor, rank: int, iterations: int | None = None) -> Factors:
    """Return the `rank` principal components of `matrix` (d_out, d_in): its best approximation of that rank.

    iterations: None finds them exactly (Eckart and Young 1936), by the eigenvectors of the smaller Gram matrix in
    64 bit. A number finds them approximately by as many subspace iterations from seeded random directions (Halko et al.
    2011, arXiv 0909.4061), as PEFT's `pissa_niter_4` does: much faster on large matrices.
    """
    rank = min(rank, *matrix.shape)
    if rank == 0:
        return Factors(matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0, matrix.shape[1]))
    if iterations is not None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            left, sizes, right = torch.svd_lowrank(matrix.float(), q=rank, niter=iterations)
        root = sizes.sqrt()
        return Factors(left * root, root.unsqueeze(1) * right.t())
    if matrix.shape[0] > matrix.shape[1]:
        b, a = _of_wide(matrix.t(), rank)
        return Factors(a.t().contiguous(), b.t().contiguous())
    return Factors(*_of_wide(matrix, rank))


def _of_wide(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of a matrix with no more rows than columns."""
    exact = matrix.double()
    count = len(exact)
    # Of the eigenvectors only those wanted: a full decomposition takes several times as long.
    values, vectors = eigh((exact @ exact.t()).cpu().numpy(), subset_by_index=(count - rank, count - 1))
    left = torch.from_numpy(vectors.copy()).flip(1).to(exact.device)
    sizes = torch.from_numpy(values.copy()).flip(0).clamp(min=0).sqrt().to(exact.device)
    root = sizes.sqrt()
    # Where the matrix has no further component its factor is zero.
    inverse = torch.where(root > 0, 1 / root, 0.0)
    return (left * root).float(), (inverse.unsqueeze(1) * (left.t() @ exact)).float()

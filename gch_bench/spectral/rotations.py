"""Haar-random rotations at an interface: what they make of the energy and the largest singular value of a product.

Definition of this project (docs/geometry.md): the rotations are the null of an interface (nulls.py).
"""

import functools
from typing import NamedTuple

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

ROTATIONS = 80
DRAWS = ROTATIONS - 1  # used of them: then a value that all draws but one or none lie below has 2 / 80 = 2.5% by chance
DENSE = 96  # up to this dimension every rotation is a Haar matrix of its own
BASES = 4  # above it, so many Haar matrices, one alone above 1024, whose rows and columns are permuted anew for every rotation
STEPS = 120  # most Lanczos steps for the largest singular value of a rotated product
CONVERGED = 1e-3  # relative change of its square in ten steps
EXHAUSTED = 1e-5  # share of a vector that single precision cannot tell from 0


class Rotations(NamedTuple):
    """ROTATIONS rotations Q of dimension m: the rows and columns of Haar matrices in permuted order, each of them Haar-random.

    Signs are left out, because nothing that is computed here depends on them.
    """

    bases: Tensor  # float32 (b, m, m), Haar
    rows: Tensor  # int64 (b, m, k / b): the place of each entry of A_{l+1}'s spectrum
    columns: Tensor  # int64 (b, m, k / b): that of A_l's

    def _placed(self, values: Tensor, order: Tensor) -> Tensor:
        """float32 (b, m, k / b): ``values``, filled up with zeros, at the places of each rotation."""
        padded = torch.zeros(order.shape[1], dtype=torch.float32)
        padded[: len(values)] = values.float()
        return padded[order]

    def traces(self, first: Tensor, second: Tensor) -> Tensor:
        """float64 (DRAWS,): tr(Q X Q^T Y) for the eigenvalues ``first`` of X and ``second`` of Y."""
        x, y = self._placed(first, self.columns), self._placed(second, self.rows)
        return ((self.bases.square() @ x) * y).double().sum(1).flatten()[:DRAWS]

    def tops(self, first: Tensor, second: Tensor) -> Tensor:
        """float64 (DRAWS,): s_1(Sigma_2 Q Sigma_1) for the singular values ``first`` and ``second``."""
        x, y = self._placed(first, self.columns), self._placed(second, self.rows)
        if len(self.bases[0]) <= DENSE:
            products = y.mT[..., :, None] * self.bases[:, None] * x.mT[..., None, :]
            products = products.double().flatten(0, 1)[:DRAWS]
            return torch.linalg.eigvalsh(products.mT @ products)[:, -1].clamp(min=0).sqrt()
        return _lanczos(self.bases, x, y.square()).sqrt()[:DRAWS]


def _lanczos(bases: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """float64 (k,): the largest eigenvalue of X Q^T Y Q X for the diagonals ``x`` and ``y`` (b, m, k / b) of X and Y.

    All rotations take their steps together, so that each step is two matrix products for every Haar matrix.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(x.shape, generator=generator) * (x > 0)
    here, before = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True), torch.zeros_like(vector)
    length = torch.zeros_like(here[:, :1])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    top = torch.zeros(())
    for step in range(1, STEPS + 1):
        image = x * (bases.mT @ (y * (bases @ (x * here))))
        size = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        along = (image * here).sum(1, keepdim=True)
        diagonal.append(along[:, 0])
        # The vectors do not stay orthogonal to earlier ones, which repeats eigenvalues but moves no largest one (Paige, 1971).
        image = image - along * here - length * before
        image = image - (image * here).sum(1, keepdim=True) * here
        length = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        # Where nothing but rounding is left, the Krylov space is exhausted, and its largest eigenvalue is found.
        going = length > EXHAUSTED * size
        if step % 10 == 0 or step == STEPS or not bool(going.any()):
            earlier, top = top, _largest(diagonal, beside)
            if bool(((top - earlier) <= CONVERGED * top).all()) or not bool(going.any()):
                break
        length = torch.where(going, length, 0)
        beside.append(length[:, 0])
        here, before = torch.where(going, image / torch.where(going, length, 1), 0), here
    return top.flatten()


def _largest(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """float64 (b, k / b): the largest eigenvalues of tridiagonal matrices from their diagonals and those beside them."""
    a = torch.stack(diagonal, -1).double()
    b = torch.stack(beside, -1).double() if beside else a[..., :0]
    last, shape = a.shape[-1] - 1, a.shape[:-1]
    if last == 0:
        return a[..., 0]
    pairs = zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True)
    found = [eigh_tridiagonal(on, off, True, "i", (last, last), check_finite=False)[0] for on, off in pairs]
    return torch.tensor(found, dtype=torch.float64).reshape(shape)


def haar_rotations(m: int, seed: int = 0, interface: int = 0) -> Rotations:
    """The rotations of dimension m for one ``interface``, independent of those of others but for the Haar matrices above DENSE.

    Up to DENSE all matrices are drawn anew, above it only the order of their rows and columns.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + interface)
    bases = _haar(m, ROTATIONS, generator) if m <= DENSE else _bases(m, seed)
    order = torch.rand(2, len(bases), m, ROTATIONS // len(bases), generator=generator).argsort(2)
    return Rotations(bases, order[0], order[1])


def one_rotation(m: int, seed: int = 0) -> Tensor:
    """float64 (m, m): a single Haar-random rotation, one for all matrices of the dimension."""
    return _bases(m, seed)[0].double()


@functools.lru_cache(maxsize=4)
def _bases(m: int, seed: int) -> Tensor:
    return _haar(m, BASES if m <= 1024 else 1, torch.Generator().manual_seed(seed))


def _haar(m: int, count: int, generator: torch.Generator) -> Tensor:
    """float32 (count, m, m), Haar-random: Q of the QR decomposition of a Gaussian matrix, its signs made random."""
    q, r = torch.linalg.qr(torch.randn(count, m, m, generator=generator))
    return q * torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[:, None]

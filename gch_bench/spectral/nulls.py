"""What the numbers of the geometry are by chance: Haar rotations at an interface, and Gaussian matrices.

Definitions of this project (docs/geometry.md).

An interface is the place where a factor A_l (m, n) meets the next one, A_{l+1} (p, m). Its null is A_{l+1} Q A_l with a
Haar-random rotation Q of the m shared channels: both factors keep their spectra, and only how they are turned to each other is
lost. With X = A_l A_l^T and Y = A_{l+1}^T A_{l+1}, mean and variance of tr(Q X Q^T Y) are known in closed form,

    E = tr X tr Y / m,   Var = 2 |X_0|^2 |Y_0|^2 / ((m - 1)(m + 2)),   X_0 = X - (tr X / m) I,

because the traceless symmetric matrices are an irreducible representation of dimension (m - 1)(m + 2) / 2. The energy gain and
the principal angles are of this form. Percentiles, and everything about the largest singular value, come from draws.

A weaker null keeps the channels and only assigns them anew: A_{l+1} P A_l with a random permutation P. What is left over it is
more than that large channels of one factor meet large channels of the other.

The null of a spectrum is a Gaussian matrix of the same shape. Its singular values are drawn as those of a bidiagonal matrix of
chi variables (Silverstein, 1985; Dumitriu and Edelman, 2002), which costs O(d^2) and not O(d^3).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

ROTATIONS = 80
DRAWS = ROTATIONS - 1  # used of them: then a value that all draws but one or none lie below has 2 / 80 = 2.5% by chance
GAUSSIANS = 20
PERMUTATIONS = 32
DENSE = 96  # up to this dimension every rotation is a Haar matrix of its own
BASES = 4  # above it, so many Haar matrices, one alone above 1024, whose rows and columns are permuted anew for every rotation
STEPS = 120  # most Lanczos steps for the largest singular value of a rotated product
CONVERGED = 1e-4  # relative change of that value in ten steps
EXHAUSTED = 1e-5  # share of a vector that single precision cannot tell from 0


class Null(NamedTuple):
    """A number beside what it is by chance."""

    value: float
    mean: float  # of the null
    sd: float  # of the null
    z: float  # (value - mean) / sd; nan where the null does not vary
    percentile: float  # share of the null's draws below the value, 0..100, those equal to it counted half


def compared(value: float, draws: Tensor, mean: float | None = None, sd: float | None = None) -> Null:
    """``value`` beside ``draws`` (k,) of its null, whose exact ``mean`` and ``sd`` are taken where they are given."""
    if math.isnan(value):
        return Null(value, math.nan, math.nan, math.nan, math.nan)
    mean = float(draws.mean()) if mean is None else mean
    sd = float(draws.std()) if sd is None else sd
    # A null that varies by rounding alone has no scale to compare with.
    z = (value - mean) / sd if sd > 1e-9 * max(abs(mean), 1e-12) else math.nan
    close = 1e-9 * max(abs(value), 1.0) if math.isfinite(value) else 0.0
    below, equal = (draws < value - close).double().mean(), ((draws - value).abs() <= close).double().mean()
    return Null(value, mean, sd, z, 100 * float(below + equal / 2))


class Alignment(NamedTuple):
    """How two factors are turned to each other at their interface, each number beside its null under Haar rotations."""

    energy_gain: Null  # m ||A_{l+1} A_l||_F^2 / (||A_{l+1}||_F^2 ||A_l||_F^2), by chance 1
    slack_ratio: Null  # slack / (r_l + r_{l+1}): 0 if the tops of both factors meet; nan if both spectra are flat
    mean_cosine_squared: Null  # of the principal angles between the two windows, by chance max(k_l, k_{l+1}) / m


class Spectra(NamedTuple):
    """What the null of an interface depends on: singular values of both factors, descending, and the dimension they share."""

    first: Tensor  # of A_l (d1,)
    second: Tensor  # of A_{l+1} (d2,)
    shared: int  # m


def interface_nulls(spectra: Spectra, top: float, energy: float, overlap: tuple[float, int, int], seed: int = 0) -> Alignment:
    """The numbers of one interface beside their nulls.

    Args:
        spectra: of the two factors.
        top: s_1(A_{l+1} A_l).
        energy: ||A_{l+1} A_l||_F^2.
        overlap: the mean cos^2 of the principal angles, and the windows k_l and k_{l+1} that it is of.
        seed: of the rotations.
    """
    m = spectra.shared
    first, second = (values.cpu().double() / float(torch.linalg.vector_norm(values)) for values in spectra[:2])
    norms = float(torch.linalg.vector_norm(spectra.first)) * float(torch.linalg.vector_norm(spectra.second))
    cosine, k1, k2 = overlap
    rotations = _rotations(m, seed)
    gain = compared(
        m * energy / norms**2, m * rotations.traces(first.square(), second.square()), 1.0, _trace_sd(first**2, second**2, m) * m
    )
    ones = torch.ones(max(k1, k2), dtype=torch.float64)
    least = min(k1, k2)
    angles = compared(
        cosine, rotations.traces(ones[:k1], ones[:k2]) / least, max(k1, k2) / m, _trace_sd(ones[:k1], ones[:k2], m) / least
    )
    both = math.log(float(first[0])) + math.log(float(second[0])) + (math.log(len(first)) + math.log(len(second))) / 2
    if both < 1e-9:  # both spectra are flat: the product has no top to lose
        return Alignment(gain, compared(math.nan, torch.zeros(1)), angles)
    most = math.log(float(first[0])) + math.log(float(second[0]))
    drawn = (most - rotations.tops(first, second).log()) / both
    slack = max(most - math.log(top / norms), 0.0) / both if top > 0 else math.inf
    return Alignment(gain, compared(slack, drawn), angles)


def permuted_gain(first: Tensor, second: Tensor, gain: float, seed: int = 0) -> Null:
    """The energy ``gain`` of A_l, ``first`` (m, n), and A_{l+1}, ``second`` (p, m), beside that with permuted shared channels.

    The null's mean is exact: off the diagonal X and Y meet in every pair of different channels equally often.
    """
    m = len(first)
    x, y = (first @ first.mT).cpu().float(), (second.mT @ second).cpu().float()
    x, y = m * x / x.trace(), y / y.trace()
    draws = []
    for seed_of_draw in range(PERMUTATIONS):
        generator = torch.Generator().manual_seed(1_000_003 * seed + seed_of_draw)
        order = torch.randperm(m, generator=generator)
        draws.append(float((x[order][:, order] * y).sum(dtype=torch.float64)))
    sums = [(float(each.trace()), float(each.sum(dtype=torch.float64))) for each in (x, y)]
    mean = sums[0][0] * sums[1][0] / m
    if m > 1:
        mean += (sums[0][1] - sums[0][0]) * (sums[1][1] - sums[1][0]) / (m * (m - 1))
    return compared(gain, torch.tensor(draws, dtype=torch.float64), mean)


def _trace_sd(x: Tensor, y: Tensor, m: int) -> float:
    """Standard deviation of tr(Q X Q^T Y) for the non-zero eigenvalues ``x`` and ``y`` of X and Y (m, m)."""
    spread = [max(float(each.square().sum()) - float(each.sum()) ** 2 / m, 0.0) for each in (x, y)]
    return math.sqrt(2 * spread[0] * spread[1] / ((m - 1) * (m + 2))) if m > 1 else 0.0


class _Rotations(NamedTuple):
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
    basis = torch.empty(len(x), STEPS, *x.shape[1:])  # (b, steps, m, k / b)
    basis[:, 0] = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    top = torch.zeros(())
    for step in range(1, STEPS + 1):
        last = basis[:, step - 1]
        image = x * (bases.mT @ (y * (bases @ (x * last))))
        diagonal.append((image * last).sum(1))
        size = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        known = basis[:, :step]
        for _ in range(2):  # once is not enough in single precision
            image = image - torch.einsum("bsmk,bsk->bmk", known, torch.einsum("bsmk,bmk->bsk", known, image))
        length = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        # Where nothing but rounding is left, the Krylov space is exhausted, and its largest eigenvalue is found.
        going = length > EXHAUSTED * size
        if step % 10 == 0 or step == STEPS or not bool(going.any()):
            before, top = top, _largest(diagonal, beside)
            if bool(((top - before) <= CONVERGED * top).all()) or not bool(going.any()):
                break
        beside.append(torch.where(going, length, 0)[:, 0])
        basis[:, step] = torch.where(going, image / torch.where(going, length, 1), 0)
    return top.flatten()


def _largest(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """float64 (b, k / b): the largest eigenvalues of tridiagonal matrices from their diagonals and those beside them."""
    a = torch.stack(diagonal, -1).double()
    b = torch.stack(beside, -1).double() if beside else a[..., :0]
    last, shape = a.shape[-1] - 1, a.shape[:-1]
    if last == 0:
        return a[..., 0]
    pairs = zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True)
    found = [eigh_tridiagonal(on, off, True, "i", (last, last))[0] for on, off in pairs]
    return torch.tensor(found, dtype=torch.float64).reshape(shape)


@functools.lru_cache(maxsize=4)
def _rotations(m: int, seed: int) -> _Rotations:
    generator = torch.Generator().manual_seed(seed)
    count = ROTATIONS if m <= DENSE else BASES if m <= 1024 else 1
    q, r = torch.linalg.qr(torch.randn(count, m, m, generator=generator))
    signs = torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    each = ROTATIONS // count
    order = torch.rand(2, count, m, each, generator=generator).argsort(2)
    return _Rotations(q * signs[:, None], order[0], order[1])


@functools.lru_cache(maxsize=256)
def gaussian_spectra(rows: int, columns: int, taps: int = 1, seed: int = 0) -> Tensor:
    """float64 (GAUSSIANS, d taps): singular values, descending, of Gaussian matrices (rows, columns) with ||A||_F = 1.

    Those of ``taps`` independent matrices are taken together as one spectrum. They are exact draws: a Gaussian matrix has the
    singular values of a bidiagonal matrix whose entries are independent chi variables.
    """
    large, d = max(rows, columns), min(rows, columns)
    generator = np.random.default_rng([seed, rows, columns, taps])
    drawn = np.empty((GAUSSIANS, taps, d))
    for values in drawn.reshape(-1, d):
        on = generator.chisquare(np.arange(large, large - d, -1))
        beside = generator.chisquare(np.arange(d - 1, 0, -1))
        squares = on.copy()
        squares[1:] += beside
        values[:] = eigh_tridiagonal(squares, np.sqrt(on[:-1] * beside), eigvals_only=True) if d > 1 else on
    energies = torch.from_numpy(drawn).flatten(1).clamp_(min=0).sort(1, descending=True).values
    return (energies / energies.sum(1, keepdim=True)).sqrt()

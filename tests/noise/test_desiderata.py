"""The verdicts on D1 to D5 against draws: what holds within 5 standard errors, and what fails by more than 5."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from test_mechanism import NOISY, build
from torch import Tensor

from gch_bench.noise import DirichletGreen, Gate, Gaussian, HardMask, Mechanism, PeriodicGreen, White, describe, make_mechanism
from gch_bench.noise.desiderata import DESIDERATA, EXACTLY, FAILS, IN_MEAN, NOT_APPLICABLE, OWN, PER_SAMPLE, Description
from gch_bench.noise.draws import Draws
from gch_bench.noise.gate_numbers import Number
from gch_bench.noise.kernels import MassiveGreen
from gch_bench.noise.mechanism import FieldNoise
from gch_bench.noise.table import LAWS

DRAWS = 40_000
OTHERS = {  # what no preset has
    "periodic": make_mechanism("wick", "periodic_green", {"gamma": 0.5}),
    "massless": make_mechanism("wick", "massive_green", {"mass": 0.0, "energy": 30.0}),
    "white softmax": make_mechanism("samplewise", "white", {}),
    "periodic mask": make_mechanism("hard_mask", "periodic_green", {"p": 0.3}),
    "additive exponential": make_mechanism("wick", "dirichlet_green", {}, "additive"),
    "additive softmax": make_mechanism("samplewise", "dirichlet_green", {}, "additive"),
    "blocks of one site": make_mechanism("block", "", {"p": 0.2, "block_size": 1}),
    "strong noise": make_mechanism("gaussian", "dirichlet_green", {"sigma": 1.0}),
    "mask that drops nothing": make_mechanism("hard_mask", "white", {"p": 0.001}),
}
MECHANISMS = {name: build(name) for name in NOISY} | OTHERS


def holds(found: Description) -> dict[str, str]:
    return {each.key: each.holds for each in found.verdicts}


def draws_of(mechanism: Mechanism, draws: int = DRAWS) -> Tensor:
    """Gates (or 1 + additive noise) from a seed that describe does not use: (draws, 7, 7)."""
    torch.manual_seed(11)
    return mechanism.apply_noise(torch.ones(draws, 1, 7, 7))[:, 0].double()


def within(values_B: Tensor, expected: float | Tensor, errors: float = 5.0) -> Tensor:
    """Whether the means over the draws are within so many standard errors of what is expected."""
    return (values_B.mean(0) - expected).abs() <= errors * values_B.std(0) / math.sqrt(len(values_B)) + 1e-6


@pytest.mark.parametrize("name", MECHANISMS)
def test_positivity(name: str) -> None:
    """D2: the share is that of the draws. A Gaussian's may be too small to be seen: the normal distribution says what it is."""
    mechanism = MECHANISMS[name]
    found = describe(mechanism)
    gates_BHW = draws_of(mechanism)
    share = found.numbers.nonpositive
    assert share is not None
    assert share.error is None
    assert within((gates_BHW <= 0).double().mean((1, 2)), share.value)
    law = mechanism.law
    if isinstance(law, Gaussian):
        sd_HW = gates_BHW.std(0)
        tail = math.log(norm.cdf(-1 / sd_HW.numpy()).mean())
        steps = [math.log(norm.cdf(-1 / (sd_HW.numpy() * (1 + sign * 5 / math.sqrt(2 * DRAWS)))).mean()) for sign in (-1, 1)]
        assert steps[0] < math.log(share.value) < steps[1], tail
    verdict = holds(found)["D2"]
    if mechanism.adds and isinstance(law, Gate):
        assert verdict == FAILS
        assert not within((gates_BHW <= 0.5).double().mean((1, 2)), 0.0), "a feature of half the RMS changes its sign"
    else:
        assert verdict == (FAILS if share.value > 0 else "exactly")
        assert isinstance(law, Gaussian) or bool((gates_BHW <= 0).any()) == (verdict == FAILS)


@pytest.mark.parametrize("name", MECHANISMS)
def test_unbiasedness(name: str) -> None:
    """D3: at every site, over the sites of every sample, or not."""
    mechanism = MECHANISMS[name]
    found, gates_BHW = describe(mechanism), draws_of(mechanism)
    verdict, bias = holds(found)["D3"], found.numbers.bias
    assert bias is not None
    every_site = bool(within(gates_BHW, 1.0).all())
    if verdict == IN_MEAN:
        assert every_site
        assert bias.value < 1e-12
        assert bias.error is None
    elif verdict == PER_SAMPLE:
        assert float((gates_BHW.mean((1, 2)) - 1).abs().max()) < 1e-5
        ring = torch.ones(7, 7, dtype=torch.float64)
        ring[1:-1, 1:-1] = -24 / 25  # the mean of the ring less that of the other sites: the draws show no single site's bias
        alike = bool(within((draws_of(mechanism, 8 * DRAWS) * ring).sum((1, 2)) / 24, 0.0))
        assert alike == (bias.error is None) == ("all sites are alike" in found.verdicts[2].why)
        assert every_site or not alike
    else:
        assert verdict == FAILS
        assert within(gates_BHW.mean((1, 2)), 1.0), "averaged over the sites"
        assert not every_site
    largest = int((gates_BHW.mean(0) - 1).abs().argmax())
    error = math.hypot(float(gates_BHW.flatten(1)[:, largest].std()) / math.sqrt(DRAWS), bias.error or 0.0)
    assert abs(float((gates_BHW.mean(0) - 1).abs().max()) - bias.value) <= 5 * error + 1e-6


@pytest.mark.parametrize("name", MECHANISMS)
def test_numbers_are_those_of_draws(name: str) -> None:
    found, gates_BHW = describe(MECHANISMS[name]).numbers, draws_of(MECHANISMS[name])
    groups = gates_BHW.unflatten(0, (40, -1))
    for field, statistic in (("gate_variance", lambda gates: gates.var(0).mean()), ("neighbours", neighbours)):
        number = getattr(found, field)
        if number is None:
            assert not gates_BHW.std()
            continue
        values = torch.stack([statistic(group) for group in groups])
        error = math.hypot(float(values.std()) / math.sqrt(len(values)), number.error or 0.0)
        assert abs(float(values.mean()) - number.value) <= 5 * error + 2e-3 * abs(number.value) + 1e-6, field
    if found.log_variance is not None:
        assert float(gates_BHW.log().var(0).mean()) == pytest.approx(found.log_variance.value, rel=0.02)


def neighbours(gates_BHW: Tensor) -> Tensor:
    """Over all pairs of neighbouring sites: the sum of their covariances over that of their products of deviations."""
    _, height, width = gates_BHW.shape
    covariance = torch.cov(gates_BHW.flatten(1).T)
    deviation = covariance.diagonal().sqrt()
    pairs = [(i * width + j, k * width + m) for i in range(height) for j in range(width) for k in range(height)
             for m in range(width) if abs(i - k) + abs(j - m) == 1]  # fmt: skip
    one, other = torch.tensor(pairs).T
    return covariance[one, other].sum() / (deviation[one] * deviation[other]).sum()


FIELDS = {name: each for name, each in MECHANISMS.items() if isinstance(each.law, FieldNoise)}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    """D1, D4, D5: against the covariance of drawn fields on their free sites, and L as a dense matrix."""
    found = describe(FIELDS[name])
    law = FIELDS[name].law
    assert isinstance(law, FieldNoise)
    ring = getattr(law.kernel, "pinned", 0)
    random = torch.Generator().manual_seed(5)
    psi_BHW = law.kernel.sample(DRAWS, 7, 7, random, dtype=torch.float64)[:, ring : 7 - ring, ring : 7 - ring]
    side = 7 - 2 * ring
    psi_BN, laplacian = psi_BHW.flatten(1), dense_laplacian(side)
    energy_B = 0.5 * (psi_BN * (psi_BN @ laplacian)).sum(1)
    assert found.energy is not None
    assert found.entropy is not None
    assert within(energy_B, found.energy)
    # D1: the components of sqrt(beta L) psi are independent and of variance one, for the Green field alone.
    beta = side**2 / (2 * float(energy_B.mean()))
    white_BN = psi_BN @ torch.linalg.cholesky(beta * laplacian)
    errors = (white_BN.T @ white_BN / DRAWS - torch.eye(side**2)).abs() * math.sqrt(DRAWS)
    assert (holds(found)["D1"] == "exactly") == bool((errors <= 5 * (1 + torch.eye(side**2) * 0.5)).all())
    # D4: the energy is less than that of independent sites with the same variances.
    saved_B = 2 * psi_BN.square().sum(1) - energy_B
    assert (holds(found)["D4"] == "exactly") == bool(saved_B.mean() > 5 * saved_B.std() / math.sqrt(DRAWS))
    # D5: no direction has variance zero.
    smallest, *_, largest = torch.linalg.eigvalsh(torch.cov(psi_BN.T))
    assert (holds(found)["D5"] == "exactly") == bool(smallest > 1e-9 * largest)


def dense_laplacian(side: int) -> Tensor:
    path = 2 * torch.eye(side) - torch.diag(torch.ones(side - 1), 1) - torch.diag(torch.ones(side - 1), -1)
    eye = torch.eye(side)
    return (torch.kron(path, eye) + torch.kron(eye, path)).double()


@pytest.mark.parametrize("name", [name for name in FIELDS if isinstance(FIELDS[name].law.kernel, White | MassiveGreen)])
def test_entropy_gap_is_the_divergence_from_the_green_field(name: str) -> None:
    """KL of two Gaussians of equal energy, from dense matrices."""
    found = describe(FIELDS[name])
    covariance = FIELDS[name].law.kernel.covariance(7, 7)
    precision = dense_laplacian(7)
    precision = precision * 49 / torch.trace(precision @ covariance)
    gap = -float(torch.logdet(covariance) + torch.logdet(precision)) / 2 / 49
    assert found.entropy is not None
    assert found.entropy.gap_per_site[OWN] == pytest.approx(gap, abs=1e-12)
    assert (holds(found)["D1"] == FAILS) == (gap > 1e-12)


def test_dropkey_has_no_gate() -> None:
    found = describe(build("dropkey"))
    assert {*holds(found).values()} == {NOT_APPLICABLE}
    assert [each.name for each in found.parameters] == ["p"]


@pytest.mark.parametrize("law", LAWS)
def test_every_law_and_injection_of_the_table_is_described(law: str) -> None:
    for injection in LAWS[law].injections:
        found = describe(make_mechanism(law, "", {}, injection) if not LAWS[law].takes_kernel
                         else make_mechanism(law, "periodic_green", {}, injection), 3, 4)  # fmt: skip
        assert [each.key for each in found.verdicts] == list(DESIDERATA)
        assert all("\n" not in text and text for text in (found.law, found.kernel, found.injection))
        assert found.parameters


@pytest.mark.parametrize("kernel", [DirichletGreen(2.0), DirichletGreen(energy=10.0), DirichletGreen(match_variance=True)])
def test_energy_gives_beta(kernel: DirichletGreen) -> None:
    found = describe(Gate(kernel), 5, 8)
    values = {each.name: each.value for each in found.parameters}
    assert values["beta"] == pytest.approx(40 / (2 * values["energy"]))
    torch.testing.assert_close(replace(DirichletGreen(), beta=values["beta"]).variance(5, 8), kernel.variance(5, 8))


@pytest.mark.parametrize("name", [*MECHANISMS, "dropkey"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_small_maps(name: str, height: int, width: int) -> None:
    mechanism = MECHANISMS.get(name) or build(name)
    if name == "gch_inside":
        with pytest.raises(ValueError, match=rf'^boundary="inside" needs a map of at least 3x3, got {height}x{width}$'):
            describe(mechanism, height, width)
        return
    found = describe(mechanism, height, width)
    numbers = [number.value for number in found.numbers if number is not None]
    assert all(math.isfinite(number) for number in numbers)
    if height * width == 1:
        assert found.numbers.neighbours is None
        assert holds(found)["D4"] == NOT_APPLICABLE


def test_what_small_maps_change() -> None:
    """On one site all fields are alike; on 2x2 symmetry makes all sites alike; the torus of two sites anti-correlates them."""
    assert holds(describe(Gate(White()), 1, 1))["D1"] == "exactly"
    assert describe(HardMask(DirichletGreen(), 0.5), 2, 2).numbers.bias == (0.0, None)
    assert holds(describe(Gate(PeriodicGreen()), 1, 2))["D4"] == FAILS
    with pytest.raises(ValueError, match=r"^a grid must be at least 1x1, got 0x3$"):
        describe(Gate(White()), 0, 3)
    with pytest.raises(ValueError, match="the mechanism must be of a law in"):
        describe(Mechanism())


class Uniform(Mechanism):
    """A law that states nothing but its words and its strength: xi(x) = 1 + sigma u(x), u uniform on [-1, 1]."""

    strength = "sigma"

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return 1 + self.sigma * (2 * draws.uniform((len(features), 1, *features.shape[2:])) - 1)

    def words(self, height: int, width: int) -> str:
        return "uniform"


def test_a_law_that_states_no_closed_form_is_measured() -> None:
    weak = describe(Uniform(0.9), 4, 4)
    assert within_errors(weak.numbers.gate_variance, 0.27)
    assert within_errors(weak.numbers.neighbours, 0.0)
    assert (holds(weak)["D2"], holds(weak)["D3"]) == (EXACTLY, IN_MEAN)
    strong = describe(Uniform(2.0), 4, 4)
    assert within_errors(strong.numbers.nonpositive, 0.25)
    assert holds(strong)["D2"] == FAILS
    assert [each.name for each in strong.parameters] == ["sigma"]


def within_errors(found: Number | None, value: float) -> bool:
    assert found is not None
    assert found.error is not None
    return abs(found.value - value) <= 5 * found.error

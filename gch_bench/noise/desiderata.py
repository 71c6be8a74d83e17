"""What a mechanism is, in words with formulas, and which of the desiderata D1 to D5 it meets on a map (docs/theory.md).

Every verdict follows from a number: a closed form, or seeded draws with their standard error. Source of the desiderata: the
project page of VKD's author. How they are read for laws, kernels and injections other than the paper's is this project's.
"""

from dataclasses import replace
from typing import NamedTuple

from gch_bench.noise.entropy import MaxEntropyCheck, field_energy, max_entropy_check, other_kernels
from gch_bench.noise.gate_numbers import GateNumbers, gate_numbers
from gch_bench.noise.kernels import DirichletGreen, Kernel, MassiveGreen, _spectrum
from gch_bench.noise.mechanism import FieldNoise, Mechanism, Parameter
from gch_bench.noise.strength import draw_gates

EXACTLY, IN_MEAN, PER_SAMPLE, FAILS, NOT_APPLICABLE = "exactly", "in mean", "per sample", "fails", "not applicable"
DESIDERATA = {
    "D1": "least additional information: maximum entropy at the energy budget",
    "D2": "positivity: xi > 0",
    "D3": "unbiasedness: E xi(x) = 1",
    "D4": "spatial coherence through an expected-energy budget",
    "D5": "well-posedness: the field has a density",
}
OWN = "this kernel"  # its name among those that Description.entropy compares
NO_FIELD = "the law draws no field"


class Verdict(NamedTuple):
    """Whether a mechanism meets one desideratum on a map."""

    key: str  # D1..D5
    desideratum: str
    # exactly | in mean (over the noise, at every site) | per sample (over the sites, in every sample) | fails | not applicable
    holds: str
    why: str


class Description(NamedTuple):
    """What a mechanism is, and what it does on one map."""

    law: str
    kernel: str
    injection: str
    grid: tuple[int, int]
    verdicts: list[Verdict]  # D1..D5, in this order
    parameters: list[Parameter]  # what the desiderata leave free
    numbers: GateNumbers  # the numbers of the gate
    energy: float | None  # E[1/2 <psi, L psi>] of the field on this map; None without a field
    entropy: MaxEntropyCheck | None  # its kernel (OWN) and others at this energy; None without a field


class _Field(NamedTuple):
    """The field of a mechanism on one map, and what its verdicts need."""

    kernel: Kernel
    energy: float  # E[1/2 <psi, L psi>]
    independent: float  # the energy that independent sites of the same variances have: 2 sum of Var psi(x)
    entropy: MaxEntropyCheck


def describe(mechanism: Mechanism, height: int = 7, width: int = 7) -> Description:
    """Say what a mechanism is, and decide the desiderata on a height x width map.

    Args:
        mechanism: a mechanism of the table of laws, see `make_mechanism`, or one whose `words` say what it is.
        height, width: the size of the map in sites.

    Raises:
        ValueError: the map is too small for the mechanism's kernel, or the mechanism has no `words`.
    """
    if min(height, width) < 1:
        raise ValueError(f"a grid must be at least 1x1, got {height}x{width}")
    law = mechanism.law
    words = law.words(height, width)
    if words is None:
        rule = "must be of a law in gch_bench/noise/table.py, or say in its `words` what it is"
        raise ValueError(f"the mechanism {rule}, got {type(law).__name__}")
    field = _field(law.kernel, height, width) if isinstance(law, FieldNoise) else None
    found = gate_numbers(mechanism, height, width)
    decided = [
        _least_information(field),
        _positivity(mechanism, found, height, width),
        _unbiasedness(mechanism, found, height, width),
        _coherence(field, found),
        _well_posedness(field, height, width),
    ]
    return Description(
        law=words,
        kernel=law.kernel.words if isinstance(law, FieldNoise) else f"none: {NO_FIELD}",
        injection=mechanism.injection_words(),
        grid=(height, width),
        verdicts=[Verdict(key, title, *each) for (key, title), each in zip(DESIDERATA.items(), decided, strict=True)],
        parameters=_free_parameters(law, field, found, height, width),
        numbers=found,
        energy=None if field is None else field.energy,
        entropy=None if field is None else field.entropy,
    )


def _field(kernel: Kernel, height: int, width: int) -> _Field:
    independent = 2 * float(kernel.variance(height, width).sum())  # first: it says what is wrong with a map that is too small
    boundary = getattr(kernel, "boundary", "outside")
    energy = field_energy(kernel, height, width, boundary)
    kernels = {**other_kernels(boundary), OWN: kernel}
    budget = energy if energy > 0 else None  # a field that is 0 has no energy: the others are compared at beta = 1
    entropy = max_entropy_check(height, width, budget, boundary, kernels)
    return _Field(kernel, energy, independent, entropy)


def _least_information(field: _Field | None) -> tuple[str, str]:
    if field is None:
        return NOT_APPLICABLE, NO_FIELD
    gap, check = field.entropy.gap_per_site[OWN], field.entropy
    if gap == 0:
        return EXACTLY, (
            f"no field of the energy {field.energy:.4g}, with |U| = {check.sites} free sites, has more entropy than this one:"
            f" N(0, (beta L)^-1) with beta = |U|/(2 energy) = {check.beta:.4g}"
        )
    infinite = "infinitely many nats: the field has no density" if gap == float("inf") else f"{gap:.5f} nats per site"
    return FAILS, f"the Dirichlet Green field of the same energy has more entropy, by {infinite}"


def _positivity(mechanism: Mechanism, found: GateNumbers, height: int, width: int) -> tuple[str, str]:
    if found.nonpositive is None:
        return NOT_APPLICABLE, "the noise has no gate on a map; the weights of dropped keys are 0"
    share, law = found.nonpositive.value, mechanism.law
    assert found.gate_variance is not None
    changes = found.gate_variance.value > 0
    if mechanism.adds and changes:
        on_ones = f"on a map of ones the probability is {share:.3g}"
        if law.positive:
            half = float((draw_gates(mechanism, height, width) <= 0.5).double().mean())
            on_ones += f", at features of half their root mean square {half:.3g}"
        return FAILS, f"noise that is added changes the sign of features that are small enough: {on_ones}"
    if share > 0 or (law.gaussian and changes):  # a share below the smallest float is no share of 0
        what = "is 0" if law.drops else "is not positive"
        return FAILS, f"xi(x) {what} with probability {share:.3g}, averaged over the sites"
    if changes and not law.positive and not law.drops:
        return EXACTLY, "xi(x) <= 0 in none of the draws" if found.nonpositive.error is not None else "xi(x) > 0 by its formula"
    return EXACTLY, "xi is an exponential" if law.positive else "at this strength no site is dropped or changed"


def _unbiasedness(mechanism: Mechanism, found: GateNumbers, height: int, width: int) -> tuple[str, str]:
    if found.bias is None:
        return NOT_APPLICABLE, "the attention's weights sum to one after the softmax, so that nothing is scaled"
    law, bias = mechanism.law, found.bias
    largest = f"the largest |E xi(x) - 1| is {bias.text}"
    if law.mean_one_per_sample:
        if mechanism.adds:
            whole = "what is added sums to 0 over the sites in every sample"
        elif mechanism.place == "tokens":
            whole = "for a pooling over the tokens that remain, the mean of xi is one in every sample"
        else:
            whole = "the mean of xi over the sites is one in every sample"
        if bias.error is None and isinstance(law, FieldNoise) and law.kernel.alike_sites(height, width):
            return PER_SAMPLE, f"{whole}; E xi(x) = 1 at every site, too, as all sites are alike"
        if bias.is_zero:
            return PER_SAMPLE, f"{whole}; no site was found where E xi(x) differs from 1: {largest}"
        return PER_SAMPLE, f"{whole}, but not in mean at every site: {largest}"
    if bias.value > 1e-12 and not (bias.error is not None and bias.is_zero):
        return FAILS, f"{law.why_biased}: {largest}"
    if bias.error is not None:
        return IN_MEAN, f"no site was found where E xi(x) differs from 1: {largest}"
    return IN_MEAN, "E F~ = F: what is added has mean 0" if mechanism.adds else "E xi(x) = 1 at every site"


def _coherence(field: _Field | None, found: GateNumbers) -> tuple[str, str]:
    gates = "" if found.neighbours is None else f"; the gates of neighbours have the correlation {found.neighbours.text}"
    if field is None:
        return NOT_APPLICABLE, f"{NO_FIELD} that could have an energy{gates}"
    if field.entropy.sites == 1:
        return NOT_APPLICABLE, "one free site has no neighbours"
    energies = (
        f"the energy {field.energy:.4g} is {{}} the {field.independent:.4g} of independent sites with the same variances{gates}"
    )
    if field.energy < field.independent * (1 - 1e-9):
        return EXACTLY, energies.format("below")
    equal = abs(field.energy - field.independent) <= 1e-9 * field.independent
    return FAILS, "neighbours of the field are not positively correlated: " + energies.format("equal to" if equal else "above")


def _well_posedness(field: _Field | None, height: int, width: int) -> tuple[str, str]:
    if field is None:
        return NOT_APPLICABLE, NO_FIELD
    amplitude_HW = _spectrum(field.kernel, height, width).amplitude_HW
    if float(amplitude_HW.min()) == 0:
        return FAILS, "the torus has no boundary to pin: its Laplacian has the eigenvalue 0, and the field sums to 0"
    precision = 1 / float(amplitude_HW.square().max())
    return (
        EXACTLY,
        f"the smallest eigenvalue of the field's precision is {precision:.4g} > 0, with |U| = {field.entropy.sites} free sites",
    )


def _free_parameters(law: Mechanism, field: _Field | None, found: GateNumbers, height: int, width: int) -> list[Parameter]:
    """The parameters of a law and its kernel that the desiderata leave free on a height x width map."""
    of_kernel = [] if field is None else _of_kernel(field.kernel, height, width, field.energy)
    now = "" if found.gate_variance is None else f"the gate variance, now {found.gate_variance.text}; "
    return of_kernel + law.free_parameters(height, width, now)


def _of_kernel(kernel: Kernel, height: int, width: int, energy: float) -> list[Parameter]:
    """The energy budget and the beta that belongs to it, and the mass of a massive field."""
    beta = _beta(kernel, height, width)
    given = (
        "match_variance=true, which makes the mean of Var psi 1"
        if kernel.match_variance
        else "the option energy"
        if getattr(kernel, "energy", None) is not None
        else "the option beta"
    )
    if isinstance(kernel, MassiveGreen) and given == "the option energy":
        given += ", which is the budget of E[1/2 <psi, (L + mass^2) psi>]"
    exact = type(kernel) is DirichletGreen
    relation = "beta = |U|/(2 energy)" if exact else "proportional to 1/beta"
    parameters = [
        Parameter("energy", energy, f"the budget E[1/2 <psi, L psi>] on this map: {relation}; given by {given}"),
        Parameter("beta", beta, f"the inverse temperature: {'the energy budget fixes it, ' if exact else ''}given by {given}"),
    ]
    if isinstance(kernel, MassiveGreen):
        words = "the correlation length, about 1/mass sites; a second budget, for the mean of psi^2, would fix it"
        parameters.append(Parameter("mass", kernel.mass, words))
    return parameters


def _beta(kernel: Kernel, height: int, width: int) -> float:
    """The beta with which the kernel has its variance on this map, however that is given."""
    options = {"energy": None} if isinstance(kernel, DirichletGreen) else {}
    at_one = replace(kernel, beta=1.0, match_variance=False, **options).variance(height, width).sum()
    own = kernel.variance(height, width).sum()
    return float(at_one / own) if own > 0 else kernel.beta

"""What a mechanism is, in words with formulas, and which of the desiderata D1 to D5 it meets on a map (docs/theory.md).

Every verdict follows from a number: a closed form, or seeded draws with their standard error. Source of the desiderata: the
project page of VKD's author. How they are read for laws, kernels and injections other than the paper's is this project's.
"""

from typing import NamedTuple

from gch_bench.noise.describe_words import injection_in_words, kernel_in_words, law_in_words
from gch_bench.noise.dropout import DropBlock
from gch_bench.noise.entropy import MaxEntropyCheck, field_energy, max_entropy_check, other_kernels
from gch_bench.noise.free_parameters import Parameter, free_parameters
from gch_bench.noise.gate_numbers import GateNumbers, alike, gate_numbers, law_of
from gch_bench.noise.gates import Gate, Gaussian, HardMask
from gch_bench.noise.injection import Additive, TokenRemoval
from gch_bench.noise.kernels import Kernel, _spectrum
from gch_bench.noise.mechanism import FieldNoise, Mechanism
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
        mechanism: a mechanism of the table of laws, see `make_mechanism`.
        height, width: the size of the map in sites.

    Raises:
        ValueError: the map is too small for the mechanism's kernel, or the mechanism is of no law of the table.
    """
    if min(height, width) < 1:
        raise ValueError(f"a grid must be at least 1x1, got {height}x{width}")
    law = law_of(mechanism)
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
        law=law_in_words(law, height, width),
        kernel=kernel_in_words(law.kernel) if isinstance(law, FieldNoise) else f"none: {NO_FIELD}",
        injection=injection_in_words(mechanism),
        grid=(height, width),
        verdicts=[Verdict(key, words, *each) for (key, words), each in zip(DESIDERATA.items(), decided, strict=True)],
        parameters=free_parameters(law, height, width, None if field is None else field.energy, found),
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
    share, law = found.nonpositive.value, law_of(mechanism)
    assert found.gate_variance is not None
    changes = found.gate_variance.value > 0
    if isinstance(mechanism, Additive) and changes:
        on_ones = f"on a map of ones the probability is {share:.3g}"
        if isinstance(law, Gate):
            half = float((draw_gates(mechanism, height, width) <= 0.5).double().mean())
            on_ones += f", at features of half their root mean square {half:.3g}"
        return FAILS, f"noise that is added changes the sign of features that are small enough: {on_ones}"
    if share > 0 or (isinstance(law, Gaussian) and changes):  # a share below the smallest float is no share of 0
        what = "is not positive" if isinstance(law, Gaussian) else "is 0"
        return FAILS, f"xi(x) {what} with probability {share:.3g}, averaged over the sites"
    return EXACTLY, "xi is an exponential" if isinstance(law, Gate) else "at this strength no site is dropped or changed"


def _unbiasedness(mechanism: Mechanism, found: GateNumbers, height: int, width: int) -> tuple[str, str]:
    if found.bias is None:
        return NOT_APPLICABLE, "the attention's weights sum to one after the softmax, so that nothing is scaled"
    law, bias = law_of(mechanism), found.bias
    largest = f"the largest |E xi(x) - 1| is {bias.text}"
    if isinstance(law, HardMask) or (isinstance(law, Gate) and law.normalization == "samplewise"):
        if isinstance(mechanism, Additive):
            whole = "what is added sums to 0 over the sites in every sample"
        elif isinstance(mechanism, TokenRemoval):
            whole = "for a pooling over the tokens that remain, the mean of xi is one in every sample"
        else:
            whole = "the mean of xi over the sites is one in every sample"
        if bias.error is None and alike(law, height, width):
            return PER_SAMPLE, f"{whole}; E xi(x) = 1 at every site, too, as all sites are alike"
        if bias.is_zero:
            return PER_SAMPLE, f"{whole}; no site was found where E xi(x) differs from 1: {largest}"
        return PER_SAMPLE, f"{whole}, but not in mean at every site: {largest}"
    if isinstance(law, DropBlock) and bias.value > 1e-12:
        return FAILS, f"E xi(x), averaged over the sites, is 1, but it is larger at the map's edge: {largest}"
    return IN_MEAN, "E F~ = F: what is added has mean 0" if isinstance(mechanism, Additive) else "E xi(x) = 1 at every site"


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

"""The parameters of a mechanism that the desiderata leave free: values on a map, what each fixes, and what would fix it."""

from dataclasses import replace
from typing import NamedTuple

from gch_bench.noise.dropout import DropBlock, Dropout, KeyDropout
from gch_bench.noise.gate_numbers import GateNumbers
from gch_bench.noise.gates import Gate, Gaussian, HardMask
from gch_bench.noise.kernels import DirichletGreen, Kernel, MassiveGreen
from gch_bench.noise.laws import sites_kept
from gch_bench.noise.mechanism import FieldNoise, Mechanism

MATCH = "a target for the gate variance would fix it (mode=match of diagnose.py)"


class Parameter(NamedTuple):
    """A parameter that is free."""

    name: str
    value: float
    fixed_by: str  # in words: what it fixes, and what fixes it


def free_parameters(law: Mechanism, height: int, width: int, energy: float | None, found: GateNumbers) -> list[Parameter]:
    """The free parameters of a law and its kernel on a height x width map.

    Args:
        law: the mechanism that draws xi (`gate_numbers.law_of`).
        height, width: the size of the map.
        energy: E[1/2 <psi, L psi>] of its field; None without a field.
        found: its numbers on the map.
    """
    parameters = []
    if isinstance(law, FieldNoise):
        assert energy is not None
        parameters += _of_kernel(law.kernel, height, width, energy)
    now = "" if found.gate_variance is None else f"the gate variance, now {found.gate_variance.text}; "
    if isinstance(law, Gate):
        parameters.append(Parameter("gamma", law.gamma, f"{now}only gamma^2/beta acts; {MATCH}"))
    elif isinstance(law, Gaussian):
        of = "" if law.p is None else f", here by p = {law.p:g}: sigma = sqrt(p/(1-p))"
        parameters.append(Parameter("sigma", law.sigma, f"{now}only sigma^2/beta acts{of}; {MATCH}"))
    elif isinstance(law, HardMask):
        sites = height * width
        kept = sites_kept(sites, law.p)
        words = f"the number of kept sites, round((1-p) N) = {kept} of {sites}; {now}beta has no effect; {MATCH}"
        parameters.append(Parameter("p", law.p, words))
    elif isinstance(law, KeyDropout):
        parameters.append(
            Parameter("p", law.p, "the probability of a dropped key; nothing here would fix it: there is no gate")
        )
    elif isinstance(law, Dropout):
        parameters.append(Parameter("p", law.p, f"the drop rate; {now}{MATCH}"))
    elif isinstance(law, DropBlock):
        parameters.append(
            Parameter("p", law.p, f"the drop rate, here {law.expected(height, width).drop_rate:.4g}; {now}{MATCH}")
        )
        words = "the side of a block, cut to the map's size: the correlation length; no desideratum fixes it"
        parameters.append(Parameter("block size", law.block_size, words))
    return parameters


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

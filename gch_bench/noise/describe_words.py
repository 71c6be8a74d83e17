"""Law, kernel and injection of a mechanism in words, each with its formula (docs/theory.md, sections 1 and 2)."""

from gch_bench.noise.dropout import DropBlock, Dropout, KeyDropout, SampleDropout, SpatialDropout
from gch_bench.noise.gates import Gate, Gaussian, HardMask
from gch_bench.noise.injection import Additive, TokenRemoval
from gch_bench.noise.kernels import DirichletGreen, Kernel, MassiveGreen, PeriodicGreen, White
from gch_bench.noise.laws import sites_kept
from gch_bench.noise.mechanism import Mechanism


def law_in_words(law: Mechanism, height: int, width: int) -> str:
    """The law of the gate xi, with its formula on a height x width map."""
    if isinstance(law, Gate) and law.normalization == "wick":
        return "Wick exponential of a Gaussian field: xi(x) = exp(gamma psi(x) - gamma^2/2 Var psi(x))"
    if isinstance(law, Gate):
        return "sample-wise exponential of a Gaussian field: xi(x) = exp(gamma psi(x)) / mean over y of exp(gamma psi(y))"
    if isinstance(law, Gaussian):
        return "Gaussian: xi(x) = 1 + sigma psi(x)" + ("" if law.p is None else ", sigma = sqrt(p/(1-p))")
    if isinstance(law, HardMask):
        sites = height * width
        kept = sites_kept(sites, law.p)
        return (
            f"hard mask of a Gaussian field: xi(x) = {sites}/{kept} at the {kept} sites with the largest psi, 0 at the others"
        )
    if isinstance(law, DropBlock):
        return "DropBlock: xi(x) = 0 on square blocks with random centres, 1/E(share of kept sites) elsewhere"
    if isinstance(law, KeyDropout):
        return "Bernoulli: each key of an attention is dropped with probability p, for each query and head"
    each = "sample" if isinstance(law, SampleDropout) else "channel" if isinstance(law, SpatialDropout) else "single value"
    assert isinstance(law, Dropout), "law_of knows no other"
    return f"Bernoulli: xi = 0 with probability p, else 1/(1-p), drawn for each {each}"


def kernel_in_words(kernel: Kernel) -> str:
    """The covariance of the field psi, with its formula."""
    if isinstance(kernel, White):
        words = "white: Cov psi = 1/beta, independent sites"
    elif isinstance(kernel, PeriodicGreen):
        words = "periodic Green: Cov psi = (beta L)^+ with the Laplacian L of the torus, without its constant mode"
    else:
        assert isinstance(kernel, DirichletGreen), "KERNELS has no other"
        where = "just outside the map" if kernel.boundary == "outside" else "on the map's outermost ring"
        massive = isinstance(kernel, MassiveGreen)
        formula = "massive Green: Cov psi = (beta (L + mass^2))^-1" if massive else "Dirichlet Green: Cov psi = (beta L)^-1"
        words = f"{formula} with the Laplacian L, psi = 0 {where}"
    return words + (", scaled to a mean variance of 1" if kernel.match_variance else "")


def injection_in_words(mechanism: Mechanism) -> str:
    """What the gate does to a stage, with its formula."""
    if isinstance(mechanism, KeyDropout):
        return "attention: the logit of a dropped key becomes -infinity before the softmax"
    if isinstance(mechanism, TokenRemoval):
        return "removal: tokens with xi = 0 leave the sequence; the others stay as they are"
    if isinstance(mechanism, Additive):
        of = "each channel's root mean square" if mechanism.channel_rms else "the root mean square of the sample's features"
        unit = f"r (xi(x) - 1), r = {of}" if mechanism.relative else "(xi(x) - 1)"
        return f"additive: F~(c,x) = F(c,x) + {unit}; {_shared(mechanism.gate)}"
    if mechanism.place == "branch":
        return f"branch: every residual branch f of the stage becomes xi f; {_shared(mechanism)}"
    return f"multiplicative: F~(c,x) = F(c,x) xi(x); {_shared(mechanism)}"


def _shared(law: Mechanism) -> str:
    if isinstance(law, SampleDropout):
        return "one xi for a sample"
    if isinstance(law, SpatialDropout):
        return "one xi for a channel"
    if isinstance(law, Dropout):
        return "an xi for each value"
    return "a map xi for each channel" if getattr(law, "per_channel", False) else "the same xi for all channels"

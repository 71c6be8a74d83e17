"""Internal noise: law x kernel x injection (VKD, arXiv 2603.17365). Knows nothing of configs; use it on its own."""

from gch_bench.noise.inject import Placement, inject
from gch_bench.noise.kernels import DirichletGreen, MassiveGreen, PeriodicGreen, White
from gch_bench.noise.mechanism import Additive, Gate, GaussianChaosNoise, HardMask, Mechanism, make_mechanism

__all__ = [
    "Additive",
    "DirichletGreen",
    "Gate",
    "GaussianChaosNoise",
    "HardMask",
    "MassiveGreen",
    "Mechanism",
    "PeriodicGreen",
    "Placement",
    "White",
    "inject",
    "make_mechanism",
]

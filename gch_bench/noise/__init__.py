"""Internal noise: law x kernel x injection (VKD, arXiv 2603.17365). Knows nothing of configs; use it on its own."""

from gch_bench.noise.hooks import Placement
from gch_bench.noise.inject import inject
from gch_bench.noise.kernels import DirichletGreen, MassiveGreen, PeriodicGreen, White
from gch_bench.noise.mechanism import Additive, Gate, GaussianChaosNoise, HardMask, Mechanism, make_mechanism

Touched = Placement  # the former name, still imported by users

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
    "Touched",
    "White",
    "inject",
    "make_mechanism",
]

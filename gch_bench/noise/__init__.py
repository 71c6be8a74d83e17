"""Internal noise, composed of a law, a kernel and a way of injection (VKD, arXiv 2603.17365).

This package does not import the configuration, so it can be used on its own.
"""

from gch_bench.noise.desiderata import describe
from gch_bench.noise.gates import Gate, Gaussian, GaussianChaosNoise, HardMask
from gch_bench.noise.hooks import Placement
from gch_bench.noise.inject import inject
from gch_bench.noise.injection import Additive
from gch_bench.noise.kernels import DirichletGreen, MassiveGreen, PeriodicGreen, White
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.table import make_mechanism

__all__ = [
    "Additive",
    "DirichletGreen",
    "Gate",
    "Gaussian",
    "GaussianChaosNoise",
    "HardMask",
    "MassiveGreen",
    "Mechanism",
    "PeriodicGreen",
    "Placement",
    "White",
    "describe",
    "inject",
    "make_mechanism",
]

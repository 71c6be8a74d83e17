"""The strength for a target, measured by draws of another seed for each preset; targets out of reach; no gate."""

import math

import pytest
import torch
from test_mechanism import NOISY, preset
from torch import Tensor

from gch_bench.noise.matching import Match, match_strength
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.table import LAWS, make_mechanism, option_defaults

LOGARITHMS = [name for name in NOISY if name.startswith(("gch", "massive", "lognormal"))]


def matched(name: str, target: float, quantity: str = "gate_variance", height: int = 7, width: int = 7) -> Match:
    noise = preset(name)
    assert noise.law is not None
    return match_strength(noise.law, noise.kernel, noise.options, target, height, width, noise.injection, quantity)


def mechanism(name: str, found: Match) -> Mechanism:
    noise = preset(name)
    assert noise.law is not None
    return make_mechanism(noise.law, noise.kernel, {**noise.options, found.option: found.strength}, noise.injection)


def variance(gates_BHW: Tensor) -> tuple[float, float]:
    """The variance averaged over the sites, and its standard error between 40 groups of draws."""
    values = torch.stack([group.var(0).mean() for group in gates_BHW.unflatten(0, (40, -1))])
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize(("height", "width"), [(4, 6)])
def test_gate_variance_of_every_preset(name: str, height: int, width: int) -> None:
    """Within 5 standard errors, and half a percent for the search's own draws and the rounding; a mask: within half a site."""
    found = matched(name, 0.3, height=height, width=width)
    assert found.reached is not None
    torch.manual_seed(21)
    gates_BHW = mechanism(name, found).apply_noise(torch.ones(40_000, 1, height, width))[:, 0].double()
    measured, error = variance(gates_BHW)
    assert abs(measured - found.reached.value) <= 5 * error + 0.005 * 0.3
    if preset(name).law == "hard_mask":
        sites = height * width
        step = 1 / (1 - 0.23 - 1 / sites) - 1 / (1 - 0.23)  # between a mask and that which drops one site more
        assert abs(found.reached.value - 0.3) <= step / 2 + 0.01
    else:
        assert found.reached.value == pytest.approx(0.3, rel=0.002)


@pytest.mark.parametrize("name", LOGARITHMS)
def test_log_variance_of_every_positive_gate(name: str) -> None:
    found = matched(name, 0.5, "log_variance")
    assert found.reached is not None
    torch.manual_seed(22)
    gates_BHW = mechanism(name, found).apply_noise(torch.ones(40_000, 1, 7, 7))[:, 0].double()
    measured, error = variance(gates_BHW.log())
    assert abs(measured - 0.5) <= 5 * error + 0.005 * 0.5
    assert found.reached.value == pytest.approx(0.5, rel=0.002)


def test_closed_forms() -> None:
    """p/(1-p), sigma^2 and gamma^2 Var psi, solved by hand; small strengths keep four digits."""
    assert matched("dropout", 0.25).strength == 0.2
    assert matched("gaussian_dropout", 0.25)[:2] == ("p", 0.2)
    assert matched("additive", 0.25).strength == 0.5
    assert matched("lognormal_iid", 0.25, "log_variance").strength == 0.5
    assert matched("gch_wick", 0.25, "log_variance", 1, 1).strength == 1.0, "Var psi of one site is 1/4"
    assert matched("dropout", 1e-5).strength == 1e-5
    assert matched("gch_wick", 1e6).strength > 5


def test_a_large_log_variance_does_not_underflow() -> None:
    found = matched("gch", 900.0, "log_variance")
    assert found.reached is not None
    assert found.reached.value == pytest.approx(900, rel=0.001)


def test_hard_mask_drops_the_nearest_number_of_sites() -> None:
    """At white fields the variance is d/(1-d) for the share d of dropped sites."""
    dropped = [k / 16 / (1 - k / 16) for k in range(1, 16)]
    for target in (0.01, 0.2, 0.5, 3.0, 15.0):
        found = matched("patch_dropout", target, height=4, width=4)
        assert found.reached is not None
        assert found.reached.value == pytest.approx(min(dropped, key=lambda value: abs(value - target)))


@pytest.mark.parametrize(
    ("name", "height", "width", "words"),
    [
        ("dropblock", 7, 7, "reaches at most 4.351, with p = 0.9999"),
        ("patch_dropout", 7, 7, "reaches at most 48, with 48 of 49 sites dropped"),
        ("hard_mask", 1, 1, "reaches at most 0: a map of one site has nothing to drop"),
        ("gch", 2, 2, "reaches at most 3, with large gamma"),
        ("gch", 1, 1, "reaches at most 0, with large gamma"),
    ],
)
def test_out_of_reach(name: str, height: int, width: int, words: str) -> None:
    found = matched(name, 50.0, height=height, width=width)
    assert found.strength is None
    assert found.why_not.replace("2.999", "3").replace("2.998", "3") == words


def test_not_applicable() -> None:
    assert matched("dropkey", 0.3).why_not == "not applicable: noise inside an attention has no gate on a map"
    for name in {*NOISY} - {*LOGARITHMS}:
        found = matched(name, 0.3, "log_variance")
        assert (found.strength, found.reached) == (None, None)
        assert found.why_not.startswith("not applicable: ")


@pytest.mark.parametrize("law", LAWS)
def test_every_law_has_a_strength(law: str) -> None:
    kernel = "white" if LAWS[law].takes_kernel else ""
    option = make_mechanism(law, kernel, {}).strength
    assert option in option_defaults(law, "white")
    assert make_mechanism(law, kernel, {option: 0.0}).is_off


def test_gaussian_noise_keeps_the_option_that_is_given() -> None:
    assert make_mechanism("gaussian", "white", {"p": 0.1}).strength == "p"
    assert make_mechanism("gaussian", "white", {"sigma": 0.1}).strength == "sigma"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "target must be a finite number > 0, got 0.0"),
        ({"target": math.inf}, "target must be a finite number > 0, got inf"),
        ({"quantity": "variance"}, "quantity must be one of gate_variance, log_variance, got 'variance'"),
        ({"options": {"mass": 1.0}}, "mass has no meaning for law wick"),
        ({"options": {"boundary": "inside"}, "height": 2}, 'boundary="inside" needs a map of at least 3x3, got 2x7'),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    call = {"law": "wick", "kernel": "dirichlet_green", "options": {}, "target": 0.3, "height": 7, "width": 7}
    with pytest.raises(ValueError, match=message):
        match_strength(**{**call, **change})

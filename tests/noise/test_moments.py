"""Closed moments of gates, and the distortions that follow from them, against draws on real shapes of maps."""

import math

import pytest
import torch
from test_mechanism import NOISY, build, preset

from gch_bench.noise import HardMask, Mechanism, White, make_mechanism
from gch_bench.noise.moments import both_kept_probability, distortion
from gch_bench.rng import own_draws

DRAWS, CHANNELS, HEIGHT, WIDTH = 40_000, 3, 4, 3
UNKNOWN = {"gch", "gch_inside", "massive_gch", "hard_mask"}


def strong(name: str) -> Mechanism:
    """The preset with stronger masks, so that a wrong closed form shows, and weaker exponentials, whose tails are lighter."""
    config = preset(name)
    options = {**config.options, **{key: value for key, value in (("p", 0.3), ("gamma", 0.5)) if key in config.options}}
    return make_mechanism(config.law, config.kernel, options, config.injection)


def gates(name: str) -> torch.Tensor:
    with own_draws(torch.device("cpu"), name):
        return strong(name).apply_noise(torch.ones(DRAWS, 1, HEIGHT, WIDTH)).flatten(1).double()


@pytest.mark.parametrize("name", NOISY)
def test_moments_are_those_of_draws(name: str) -> None:
    """Means and covariances within 5.5 standard errors."""
    moments = strong(name).moments(HEIGHT, WIDTH)
    if name in UNKNOWN:
        assert moments is None
        return
    xi = gates(name)
    assert ((xi.mean(0) - moments.mean_N).abs() <= 5.5 * xi.std(0) / math.sqrt(DRAWS) + 1e-6).all()
    centred = xi - moments.mean_N
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / math.sqrt(DRAWS)
    assert ((products.mean(0) - moments.covariance_NN).abs() <= 5.5 * error + 1e-6).all()


@pytest.mark.parametrize("name", NOISY)
def test_probabilities_of_masks_are_those_of_draws(name: str) -> None:
    mechanism = strong(name)
    dropped, both = mechanism.drop_probability(HEIGHT, WIDTH), both_kept_probability(mechanism, HEIGHT, WIDTH)
    xi = gates(name)
    if dropped is None:
        assert name == "hard_mask" or (xi != 0).all()
        assert both is None
        return
    kept = (xi != 0).double()
    assert ((kept.mean(0) - (1 - dropped)).abs() < 5 * math.sqrt(0.25 / DRAWS)).all()
    assert ((kept.T @ kept / DRAWS - both).abs() < 5 * math.sqrt(0.25 / DRAWS)).all()


@pytest.mark.parametrize("name", [name for name in NOISY if name not in UNKNOWN])
def test_distortions_are_those_of_draws(name: str) -> None:
    """Of one map with sites that differ, within 5 standard errors of the draws."""
    torch.manual_seed(0)
    features = torch.rand(1, CHANNELS, HEIGHT, WIDTH) * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1) + 0.3
    mechanism = strong(name)
    with own_draws(torch.device("cpu"), name):
        noisy = mechanism.apply_noise(features.expand(DRAWS, -1, -1, -1)).double()
    clean, pooled = features.double(), features.double().mean((2, 3), keepdim=True)
    spread = noisy - noisy.mean((2, 3), keepdim=True)
    measured = {
        "whole": (noisy - clean).square().sum((1, 2, 3)) / clean.square().sum(),
        "pooled": (noisy.mean((2, 3)) - pooled[..., 0, 0]).square().sum(1) / pooled.square().sum(),
        "contrast": spread.square().sum((1, 2, 3)) / (clean - pooled).square().sum(),
    }
    expected = distortion(mechanism, mechanism.moments(HEIGHT, WIDTH), features[0].flatten(1).T)
    for key, values in measured.items():
        error = float(values.std()) / math.sqrt(DRAWS)
        assert abs(float(values.mean()) - getattr(expected, key)) <= 5 * error + 1e-6, key
    second = noisy.square().mean((2, 3))
    assert ((second.mean(0) - expected.second_C).abs() <= 5 * second.std(0) / math.sqrt(DRAWS) + 1e-6).all()


@pytest.mark.parametrize("name", [name for name in NOISY if name not in UNKNOWN])
def test_facts_on_a_law_agree_with_one_another(name: str) -> None:
    """The variances and the strength are those of the covariance matrix, from which they are not computed."""
    mechanism = strong(name)
    moments, expected = mechanism.moments(HEIGHT, WIDTH), mechanism.expected(HEIGHT, WIDTH)
    torch.testing.assert_close(mechanism.law.gate_variance(HEIGHT, WIDTH), moments.covariance_NN.diagonal())
    torch.testing.assert_close(mechanism.law.gate_mean(HEIGHT, WIDTH), moments.mean_N)
    assert expected.gate_variance == pytest.approx(float(moments.covariance_NN.diagonal().mean()))
    assert expected.pooled_distortion == pytest.approx(float(moments.covariance_NN.mean()), abs=1e-12)


def test_large_maps_and_attentions_have_no_moments() -> None:
    assert build("dropout").moments(33, 32) is None
    assert build("dropkey").moments(4, 4) is None
    assert HardMask(White(), 0.0).moments(1, 1).covariance_NN.tolist() == [[0.0]]

"""The forward pass of an evaluation against its definition."""

import torch
from tinynet import tinynet

from gch_bench.data.transforms import Normalisation
from gch_bench.evaluation.predict import Predictor, predict
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.results.records import CELL_CLEAN, Cell

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def predictor(passes: int) -> Predictor:
    torch.manual_seed(0)
    model = tinynet(5).eval()
    inject(model, GaussianChaosNoise(gamma=2.0), ["late"], test=True)
    return Predictor(model, NORMALISATION, "fp32", passes, noise_seed=3)


def test_noisy_passes_average_the_softmax() -> None:
    noisy, inputs, ids = predictor(3), torch.randn(4, 3, 32, 32), torch.arange(4)
    with torch.inference_mode():
        result = predict(noisy, inputs, CELL_CLEAN, ids)
        passes = []
        for t in range(3):
            with keyed_noise(noisy.network, image_keys(ids, 3, "test noise", *CELL_CLEAN, t)):
                passes.append(noisy.network(inputs).double().softmax(1))
        other = predict(noisy, inputs, Cell("gaussian_noise", 2), ids)
    torch.testing.assert_close(result.exp(), torch.stack(passes).mean(0))
    assert not torch.allclose(passes[0], passes[1])
    assert not torch.allclose(result, other)


def test_only_the_scored_classes_are_compared() -> None:
    """The mask chooses outputs of the network before the softmax, so that the others take no probability."""
    quiet, inputs, ids = Predictor(tinynet(5).eval(), NORMALISATION, "fp32"), torch.randn(4, 3, 32, 32), torch.arange(4)
    with torch.inference_mode():
        masked = predict(quiet._replace(classes=(4, 1)), inputs, CELL_CLEAN, ids)
        logits = predict(quiet, inputs, CELL_CLEAN, ids)
    assert torch.equal(masked, logits[:, [4, 1]])

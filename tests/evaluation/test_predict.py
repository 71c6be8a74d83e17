"""The forward pass of an evaluation against its definition, and the count of its rows."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tinynet import tinynet

from gch_bench.corruptions import corrupt
from gch_bench.data.loaders import Batch
from gch_bench.data.transforms import Normalisation, normalise
from gch_bench.distributed import World
from gch_bench.evaluation.predict import Predictor, log_probabilities
from gch_bench.evaluation.run import evaluate_cell
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.results.records import CELL_CLEAN, Cell

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
ALONE = World(0, 1, torch.device("cpu"))


def make_view(passes: int) -> Predictor:
    torch.manual_seed(0)
    model = tinynet(5).eval()
    inject(model, GaussianChaosNoise(gamma=2.0), ["late"], test=True)
    return Predictor(
        model, NORMALISATION, "cifar_32", 0, jpeg_roundtrip=False, precision="fp32", noise_passes=passes, noise_seed=3
    )


def make_batch(ids: list[int]) -> Batch:
    images = torch.randint(0, 256, (max(ids) + 1, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(images[ids], torch.tensor(ids) % 5, torch.tensor(ids), [])


def test_noisy_passes_average_the_softmax() -> None:
    predictor, batch, cell = make_view(3), make_batch([0, 1, 2, 3]), Cell("gaussian_noise", 2)
    with torch.inference_mode():
        result = log_probabilities(predictor, CELL_CLEAN, batch.images, batch.ids)
        passes = []
        for t in range(3):
            with keyed_noise(predictor.network, image_keys(batch.ids, 3, "test noise", *CELL_CLEAN, t)):
                passes.append(predictor.network(normalise(batch.images, NORMALISATION)).double().softmax(1))
        other = log_probabilities(predictor, cell, batch.images, batch.ids)
    torch.testing.assert_close(result.exp(), torch.stack(passes).mean(0))
    assert not torch.allclose(passes[0], passes[1])
    assert not torch.allclose(result, other)


@pytest.mark.parametrize(("ids", "images"), [([0, 1], 3), ([0, 1, 1], 3), ([0, 1, 2, 2], 4)])
def test_lost_or_doubled_rows_are_never_recorded(ids: list[int], images: int) -> None:
    with pytest.raises(RuntimeError, match="must give as many rows"):
        evaluate_cell(make_view(0), CELL_CLEAN, [make_batch(ids)], images, ALONE, False, [])


def test_rows_come_sorted_by_id() -> None:
    rows = evaluate_cell(make_view(0), CELL_CLEAN, [make_batch([3, 1]), make_batch([2, 0])], 4, ALONE, False, [])
    assert rows["id"].tolist() == [0, 1, 2, 3]
    assert (rows["label"] == rows["id"] % 5).all()


@pytest.mark.parametrize("cell", [CELL_CLEAN, Cell("contrast", 2)])
@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("parameters", [None, "cifar_32"])
def test_pixels_that_the_network_sees(cell: Cell, jpeg: bool, parameters: str | None) -> None:
    """Generated: corrupted, then through Pillow's JPEG at quality 85 if asked for. Clean and stored images as they come."""
    seen: list[torch.Tensor] = []
    predictor = make_view(0)._replace(parameters=parameters, jpeg_roundtrip=jpeg)
    predictor.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch([0, 1, 2])
    with torch.inference_mode():
        log_probabilities(predictor, cell, batch.images, batch.ids)
    expected = batch.images
    if cell != CELL_CLEAN and parameters:
        expected = corrupt(expected, *cell, batch.ids, parameters=parameters)
        if jpeg:
            expected = torch.stack([through_jpeg(image) for image in expected])
    torch.testing.assert_close(seen, [normalise(expected, NORMALISATION)], rtol=0, atol=0)


def through_jpeg(image: torch.Tensor) -> torch.Tensor:
    with io.BytesIO() as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85, optimize=True)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)

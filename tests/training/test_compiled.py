"""The noise in a compiled network is that of the network itself."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from gch_bench.noise import inject, make_mechanism
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.training.loop import compiled

NOISES = {
    "gch": ("samplewise", "dirichlet_green", {}, None),
    "droppath": ("bernoulli_sample", "", {"p": 0.5}, None),
    "dropkey": ("bernoulli", "", {"p": 0.5}, "attention"),
}
CASES = [(noise, stage) for noise in NOISES for stage in ("L2", "L4")] + [("gch", "blocks.2.norm1")]


@pytest.fixture(autouse=True)
def torchs_own_setting() -> Iterator[None]:
    """Every test starts with torch's default, whatever ran before; what was set before is restored."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield


@pytest.mark.parametrize(("noise", "stage"), CASES)
def test_compiled_noise_is_the_noise_of_the_network(noise: str, stage: str) -> None:
    """Four equal blocks, of which only some have hooks; L4 of gch is the first norm of the last block."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=5)
    nn.init.normal_(network.head.weight)
    images = torch.randn(2, 3, 64, 64)
    inject(network, make_mechanism(*NOISES[noise]), [stage], images=images)
    fast = compiled(network, backend="eager").train()
    with torch.no_grad():
        clean = network.eval()(images)
        network.train()
        for epoch in range(3):
            with keyed_noise(network, image_keys(torch.arange(2), epoch)):
                expected = network(images)
                torch.testing.assert_close(fast(images), expected)
            assert not torch.allclose(expected, clean)

"""Which part of the networks of a pass is computed once, and that the results stay the same."""

from copy import deepcopy

import pytest
import torch
from tinynet import tinynet
from torch import Tensor, nn

from gch_bench.data.transforms import Normalisation
from gch_bench.evaluation.predict import Predictor, features_of, predict
from gch_bench.evaluation.sharing import with_trunks
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.results.records import CELL_CLEAN

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def tails(count: int) -> list[nn.Module]:
    """Networks that differ only after the module `early`."""
    torch.manual_seed(0)
    first = tinynet(5).eval()
    made = [deepcopy(first) for _ in range(count)]
    for network in made:
        for parameter in [*network.get_submodule("late").parameters(), *network.get_submodule("head").parameters()]:
            nn.init.normal_(parameter, std=0.3)
    return made


def predictor(network: nn.Module, passes: int = 0) -> Predictor:
    return Predictor(network, NORMALISATION, "fp32", passes, noise_seed=3)


class Scaled(nn.Module):
    """Multiplies by a number that lies where no hash of plain attributes looks."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.options = {"factor": factor}

    def forward(self, images: Tensor) -> Tensor:
        return images * self.options["factor"]


def calls_of(network: nn.Module, name: str) -> list[int]:
    """The batch sizes that the module is called with from now on, apart from calls that give a stored output."""
    seen: list[int] = []
    network.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def test_networks_with_the_same_trunk_compute_it_once() -> None:
    networks, inputs, ids = tails(3), torch.randn(4, 3, 32, 32), torch.arange(4)
    plain = [predict(predictor(network), inputs, CELL_CLEAN, ids).clone() for network in networks]
    found = with_trunks([predictor(network) for network in networks], ["early"] * 3, [32] * 3)
    assert len({each.trunk_id for each in found}) == 1
    seen = [calls_of(network, "early.0") for network in networks]
    with torch.inference_mode():
        features = features_of(found[0], inputs)
        for each, expected in zip(found, plain, strict=True):
            assert torch.equal(predict(each, inputs, CELL_CLEAN, ids, features), expected)
    assert seen == [[4], [], []]


@pytest.mark.parametrize("reason", ["other weights", "hidden option", "other size", "not frozen", "alone", "another network"])
def test_what_is_not_the_same_is_not_shared(reason: str) -> None:
    networks, frozen, sizes = tails(2), ["early", "early"], [32, 32]
    if reason == "other weights":
        networks[1].get_submodule("early.1").running_mean += 1e-6
    elif reason == "hidden option":
        for network, factor in zip(networks, (1.0, 3.0), strict=True):
            network.shrink = nn.Sequential(network.get_submodule("shrink"), Scaled(factor))
    elif reason == "other size":
        sizes[1] = 40
    elif reason == "not frozen":
        frozen[1] = None  # type: ignore[call-overload]
    elif reason == "alone":
        networks, frozen, sizes = networks[:1], frozen[:1], sizes[:1]
    else:
        frozen = ["nowhere", "early"]
    found = with_trunks([predictor(network) for network in networks], frozen, sizes)
    assert all(each.trunk is None for each in found)


def test_noisy_passes_compute_what_comes_before_the_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (network,), inputs, ids = tails(1), torch.randn(4, 3, 32, 32), torch.arange(4)
    inject(network, GaussianChaosNoise(gamma=2.0), ["late"], test=True)
    plain = predict(predictor(network, 7), inputs, CELL_CLEAN, ids)
    (found,) = with_trunks([predictor(network, 7)], [None], [32])
    assert found.trunk is not None
    assert found.trunk.stage == "late"
    early, head = calls_of(network, "early.0"), calls_of(network, "head")
    found = found._replace(noisy_rows=12)
    with torch.inference_mode():
        result = predict(found, inputs, CELL_CLEAN, ids, features_of(found, inputs))
    torch.testing.assert_close(result, plain, rtol=1e-5, atol=1e-6)  # batches of other sizes may round otherwise
    assert early == [4]
    assert head == [12, 12, 4], "three passes of four images fit into twelve rows"


class Reused(nn.Module):
    """Reads the images again at its end, in a way that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tinynet(5)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + images.mean((1, 2, 3))[:, None]


def test_tails_that_read_the_images_get_them() -> None:
    torch.manual_seed(0)
    network, inputs, ids = Reused().eval(), torch.randn(4, 3, 32, 32), torch.arange(4)
    inject(network, GaussianChaosNoise(gamma=2.0), ["body.late"], test=True)
    plain = predict(predictor(network, 2), inputs, CELL_CLEAN, ids)
    (found,) = with_trunks([predictor(network, 2)], [None], [32])
    with torch.inference_mode():
        result = predict(found, inputs, CELL_CLEAN, ids, features_of(found, inputs))
    torch.testing.assert_close(result, plain, rtol=1e-5, atol=1e-6)


class Placed(nn.Module):
    """Gives logits that depend on an image's place in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tinynet(5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits + torch.arange(len(logits))[:, None]


def test_a_tail_that_cannot_be_repeated_along_the_batch_is_not_used() -> None:
    network = Placed().eval()
    inject(network, GaussianChaosNoise(), ["body.late"], test=True)
    (found,) = with_trunks([predictor(network, passes=3)], [None], [32])
    assert found.trunk is None


def test_noisy_passes_share_a_trunk_up_to_the_noise_and_not_the_frozen_part() -> None:
    """So that each network gives the same logits alone and beside others, and computes no more than it must."""
    networks = tails(2)
    for network in networks:
        inject(network, GaussianChaosNoise(), ["late"], test=True)
    together = with_trunks([predictor(network, passes=3) for network in networks], ["early"] * 2, [32] * 2)
    alone = [with_trunks([predictor(network, passes=3)], [None], [32])[0] for network in networks]
    assert [each.trunk.stage for each in together if each.trunk] == ["late", "late"]
    assert [each.trunk for each in together] == [each.trunk for each in alone]
    assert len({each.trunk_id for each in together}) == 2

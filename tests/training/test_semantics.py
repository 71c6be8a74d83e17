"""What the recipe says is what happens: the weights after a few steps are those of a training loop written by hand.

The loop below knows nothing of timm's optimiser, schedule and EMA: momentum, decay, clipping and averages are plain tensor
arithmetic, and the learning rates are formulas. It shares with the program only the batches and the network's forward.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from tinynet import tinynet
from torch import Tensor, nn
from training_jobs import make_job

from gch_bench.apps.run import train_and_evaluate
from gch_bench.data.transforms import Normalisation
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.predict import Predictor, predict
from gch_bench.noise.gates import Gate
from gch_bench.results.records import CELL_CLEAN
from gch_bench.training.loop import TrainingJob, train
from gch_bench.training.optim import ema_warning

COMMON = (
    "noise=none", "recipe.optimizer=momentum", "recipe.momentum=0.9", "recipe.batch_size=32", "recipe.epochs=2",
    "recipe.lr=0.1", "recipe.weight_decay=0", "recipe.warmup_epochs=0", "recipe.grad_clip=null",
)  # fmt: skip
STEPS = 4  # 72 images in batches of 32 are two steps an epoch
COSINE = [0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
PLAIN: dict[str, Any] = {"rates": COSINE, "decay": 0.0, "parts": 1, "clip": math.inf, "averages": None}
# The recipe's options -> what they mean for the loop by hand, and how far without them it ends (they must matter).
CASES = {
    "warm-up": (["recipe.warmup_epochs=1"], {"rates": [0.001, (0.001 + 0.1) / 2, *COSINE[2:]]}),
    "weight decay": (["recipe.weight_decay=0.3"], {"decay": 0.3}),
    "learning rate scaling": (["recipe.lr_batch=64"], {"rates": [rate / 2 for rate in COSINE]}),
    "accumulation": (["recipe.grad_accumulation=2"], {"parts": 2}),
    "clipping": (["recipe.grad_clip=0.05"], {"clip": 0.05}),
    # shares of the average that stay: the first step's weights are taken whole, then 1 - n^(-2/3) up to the recipe's 0.6
    "EMA": (["recipe.ema_decay=0.6"], {"averages": [0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 0.6]}),
}


def by_hand(
    network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], rates: list[float], decay: float, parts: int, clip: float,
    averages: list[float] | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Momentum SGD: the parameters after one step for each of `rates`, or their running average."""
    network = copy.deepcopy(network).train()
    parameters = dict(network.named_parameters())
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    average = {name: value.detach().clone() for name, value in parameters.items()}
    for step, rate in enumerate(rates):
        loss = torch.tensor(0.0)
        for _ in range(parts):
            images, labels = next(batches)
            loss = loss + nn.functional.cross_entropy(network(images), labels) / parts
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        with torch.no_grad():
            for name, value in parameters.items():
                gradient = gradients[name] * min(1.0, clip / float(norm))
                gradient = gradient + decay * value if value.ndim > 1 else gradient  # biases and norms do not decay
                velocity[name] = 0.9 * velocity[name] + gradient
                value -= rate * velocity[name]
                if averages is not None:
                    average[name] = averages[step] * average[name] + (1 - averages[step]) * value
    return average if averages is not None else {name: value.detach() for name, value in parameters.items()}


def batches_of(job: TrainingJob) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of each batch that the job takes, epoch after epoch."""
    for epoch in range(2):
        for number, batch in enumerate(job.loader.epoch(epoch)):
            if number < 2 * job.recipe.grad_accumulation:
                yield batch.images, batch.labels


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((value - second[name]).detach().abs().max()) for name, value in first.items())


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_a_loop_by_hand(case: str, tmp_path: Path) -> None:
    overrides, meaning = CASES[case]
    job = make_job(tmp_path, *COMMON, *overrides)
    expected = by_hand(job.model, batches_of(job), **{**PLAIN, **meaning})
    parts = {"parts": meaning["parts"]} if case == "accumulation" else {}
    ignored = by_hand(job.model, batches_of(job), **{**PLAIN, **parts})
    trained = dict(train(job, lambda progress: None, [], warn=print).named_parameters())
    assert distance(expected, trained) < 1e-5
    if case != "accumulation":
        assert distance(ignored, trained) > 1e-3, "a recipe that ignores the option would end elsewhere"


def test_ema_warning_counts_the_first_steps_weights() -> None:
    recipe = configuration("recipe.ema_decay=0.99").recipe
    assert recipe is not None
    assert ema_warning(recipe, 459) is None, "0.99^459 = 0.99%"
    message = ema_warning(recipe, 100)
    assert message is not None
    for part in ("recipe.ema_decay=0.99", "100 steps", "37%", "decay of 0.954", "at most 0.954"):
        assert part in message
    recipe = configuration("recipe.ema_decay=null").recipe
    assert recipe is not None
    assert ema_warning(recipe, 1) is None


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_amp_is_what_modules_see(amp: str, dtype: torch.dtype, tmp_path: Path) -> None:
    job = make_job(tmp_path, *COMMON, "recipe.epochs=1", f"recipe.amp={amp}")
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    convolution = job.model.get_submodule("late.0")
    convolution.register_forward_hook(lambda module, inputs, output: seen.append((output.dtype, module.weight.dtype)))
    losses: list[torch.dtype] = []
    job.optimisation.loss.register_forward_pre_hook(lambda module, inputs: losses.append(inputs[0].dtype))
    train(job, lambda progress: None, [], warn=print)
    assert set(seen) == {(dtype, torch.float32)}, "activations in the recipe's precision, weights in float32"
    assert set(losses) == {torch.float32}


def test_every_epoch_draws_other_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates: list[Tensor] = []
    transform = Gate.transform
    monkeypatch.setattr(Gate, "transform", lambda self, psi: (gates.append(transform(self, psi)), gates[-1])[1])
    job = make_job(tmp_path, "noise=gch", "recipe.epochs=2", "recipe.batch_size=36")
    gates.clear()  # those of the trial forward passes
    train(job, lambda progress: None, [], warn=print)
    ids = torch.stack([torch.cat([batch.ids for batch in job.loader.epoch(epoch)]) for epoch in (0, 1)])
    first, second = (torch.cat(gates[2 * epoch : 2 * epoch + 2])[ids[epoch].argsort()] for epoch in (0, 1))
    assert (len(gates), first.shape) == (4, (72, 4, 4))
    assert not torch.isclose(first, second).all((1, 2)).any(), "no image has the same gate in both epochs"


def test_bf16_evaluation_is_what_modules_see() -> None:
    torch.manual_seed(0)
    network = tinynet(10).eval()
    seen: list[torch.dtype] = []
    network.get_submodule("late.0").register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    predictor = Predictor(network, Normalisation((0.5,) * 3, (0.5,) * 3), "fp32")
    inputs = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact, rough = (
            predict(predictor._replace(precision=precision), inputs, CELL_CLEAN, torch.arange(4))
            for precision in ("fp32", "bf16")
        )
    assert seen == [torch.float32, torch.bfloat16]
    assert 1e-5 < float((exact - rough).abs().max()) < 0.05


def test_bf16_evaluation_reaches_the_records(tmp_path: Path) -> None:
    """From the command line's evaluation.precision to the recorded numbers, on equal weights."""
    options = (*TINY, "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none")
    train_and_evaluate(configuration(*options, f"output={tmp_path / 'run'}"))
    weights = f"model.checkpoint={tmp_path / 'run' / 'checkpoints' / 'last.pt'}"
    losses = []
    for precision in ("fp32", "bf16"):
        output = tmp_path / precision
        choice = (f"evaluation.precision={precision}", f"output={output}")
        train_and_evaluate(configuration(*options, weights, *choice, name="evaluate"))
        losses.append(pd.read_parquet(output / "records" / "clean-0.parquet")["nll"])
    exact, rough = losses
    assert np.median(np.abs(exact - rough)) > 1e-5
    np.testing.assert_allclose(rough, exact, atol=0.1)


@pytest.mark.parametrize("recipe", [False, True])
def test_the_layout_of_an_evaluation_is_its_own(recipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluation.channels_last, and not how the network was trained or where it came from; by default true on a CPU."""
    seen: list[bool] = []
    forward = torch.nn.BatchNorm2d.forward

    def watched(self: torch.nn.BatchNorm2d, x: Tensor) -> Tensor:
        if x.shape[-1] > 1:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return forward(self, x)

    options = (*TINY, "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none", "noise=none", "device=cpu")
    training = f"recipe.channels_last={str(recipe).lower()}"
    losses = []
    for number, choice in enumerate(([], ["evaluation.channels_last=true"], ["evaluation.channels_last=false"])):
        own = tmp_path / str(number)
        monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", watched)
        train_and_evaluate(configuration(*options, training, *choice, f"output={own}"))
        monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", forward)
        assert seen[-1] == (number < 2), seen  # the last forward pass is one of the evaluation
        weights = f"model.checkpoint={own / 'checkpoints' / 'last.pt'}"
        again = tmp_path / f"again-{number}"
        train_and_evaluate(configuration(*options, weights, *choice, f"output={again}", name="evaluate"))
        records = [pd.read_parquet(folder / "records" / "clean-0.parquet") for folder in (own, again)]
        pd.testing.assert_frame_equal(*records, check_exact=True)
        losses.append(records[0]["nll"])
    assert losses[0].equals(losses[1])
    np.testing.assert_allclose(losses[0], losses[2], atol=1e-4)


def test_more_processes_than_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at most as many processes as training images, 72, got 73"):
        make_job(tmp_path, "recipe.batch_size=73", world=World(0, 73, torch.device("cpu")))

"""Builds a network from the configuration, loads its weights, attaches the noise, and measures what the noise does."""

import difflib
import importlib
import inspect
import logging
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from gch_bench.config.run import ModelConfig, NoiseConfig
from gch_bench.data.transforms import Normalisation
from gch_bench.errors import FieldError, UserError
from gch_bench.model.packaged import PACKAGED, load_packaged
from gch_bench.model.weights import head_keys, load_weights, zero_classifier
from gch_bench.noise.hooks import stage_grids, stage_hooks
from gch_bench.noise.inject import inject
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.placement import random_images
from gch_bench.noise.strength import Realised, realised
from gch_bench.noise.table import make_mechanism

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Stage(NamedTuple):
    """A noisy stage at the run's image size: where it is, and how strong its noise is there (see `strength.Realised`)."""

    stage: str  # as the configuration names it: L1..L4 or a module's name
    module: str  # the name of the module whose output carries the noise
    height: int  # of the stage's feature map or token grid, in sites
    width: int
    logit_change: float  # relative change of the logits that the noise makes, see `placement.logit_change`
    strength: Realised

    def facts(self) -> dict[str, Any]:
        """The stage as one flat mapping of plain values: an entry of run.json's `stages`."""
        facts = self._asdict()
        del facts["strength"]
        return facts | self.strength._asdict()


class NoisyNetwork(NamedTuple):
    """A network with its noise attached, and what goes with it."""

    network: nn.Module
    mechanism: str  # the noise: its law, kernel and options; "none" without noise
    stages: list[Stage]  # where the noise is; empty without noise
    normalisation: Normalisation  # of the network's input images
    warnings: list[str]  # what a user must be told about this network


def build(model: ModelConfig, noise: NoiseConfig, num_classes: int, size: int) -> NoisyNetwork:
    """The backbone for `num_classes` classes and images of size x size pixels, with its weights loaded and its noise attached.

    The network is on the CPU and in training mode.

    Raises:
        UserError: an unknown model, stage, law or kernel; an option out of range; a checkpoint that does not fit; noise that
            does not reach the logits.
    """
    try:
        mechanism = make_mechanism(noise.law, noise.kernel, noise.options, noise.injection) if noise.law else None
    except FieldError as error:
        raise error.in_group("noise") from error
    try:
        network, warnings = build_network(model, num_classes, size)
    except FieldError as error:
        raise error.in_group("model") from error
    stages: list[Stage] = []
    if mechanism is not None:
        try:
            stages = _attach(network, mechanism, noise, size)
        except ValueError as error:
            raise UserError(f"data.size={size} noise={noise.name} noise.stages={list(noise.stages)}: {error}") from error
    return NoisyNetwork(network, str(mechanism or "none"), stages, normalisation(network), warnings)


def _attach(network: nn.Module, mechanism: Mechanism, noise: NoiseConfig, size: int) -> list[Stage]:
    """Attach the noise and measure what it does to images of size x size pixels. Raises ValueError where it does nothing."""
    images = random_images(size, size)
    places = inject(network, mechanism, noise.stages, train=noise.train, test=noise.eval, images=images)
    grids = stage_grids(network, images)
    changes = {hook.placement: hook.logit_change for hook in stage_hooks(network)}
    stages = []
    for place in places:
        height, width = grids[place.stage]
        strength = realised(mechanism, height, width)  # a map that the kernel cannot live on is refused here at the latest
        change = changes[place]
        assert change is not None, "inject measures it where it is given images"
        stages.append(Stage(place.stage, place.module, height, width, change, strength))
    return stages


def normalisation(network: nn.Module) -> Normalisation:
    """The mean and standard deviation that the network's images are normalised with: timm's for it, else ImageNet's."""
    facts = getattr(network, "pretrained_cfg", None) or {}
    mean, std = (tuple(facts.get(name, getattr(IMAGENET, name))) for name in ("mean", "std"))
    return Normalisation(mean, std)


def build_network(config: ModelConfig, num_classes: int, size: int) -> tuple[nn.Module, list[str]]:
    """The backbone without noise, with its weights loaded, and warnings for the user.

    Raises:
        UserError: an unknown model, or one that does not take such images or give such logits.
        FieldError: a checkpoint that does not fit.
    """
    warnings: list[str] = []
    if config.factory:
        network = _from_factory(config, num_classes)
    else:
        network, warnings = _from_timm(config, num_classes, size)
    _try_forward(network, config, num_classes, size)
    if config.checkpoint:
        load_weights(network, config.checkpoint, config.reset_head)
    return network, warnings


def _try_forward(network: nn.Module, config: ModelConfig, num_classes: int, size: int) -> None:
    """Raise UserError if a forward pass of one size x size image fails or gives no logits of shape (1, num_classes)."""
    name = config.factory or config.name
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, size, size))
    except Exception as error:  # a foreign forward may raise anything
        raise UserError(
            f"model {name} with model.kwargs={config.kwargs} cannot take {size}x{size} images: {type(error).__name__}: {error}"
        ) from error
    finally:
        network.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"model {name} must give logits of shape (B, {num_classes}) for {num_classes} classes, got {got} at B = 1"
        )


def accepts(network: nn.Module, size: int) -> bool:
    """Whether a forward pass of size x size images works; a vision transformer takes only images of one size."""
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception:  # timm's checks of sizes come in many types
        return False
    finally:
        network.train(training)
    return True


def _from_timm(config: ModelConfig, num_classes: int, size: int) -> tuple[nn.Module, list[str]]:
    if not timm.is_model(config.name.split(".")[0]):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=5, cutoff=0.5)
        raise UserError(
            f"unknown model {config.name!r}: choose a configs/model/ name or a timm name"
            f" (timm.list_models() has them all){'; close: ' + ', '.join(close) if close else ''}"
        )
    wanted: dict[str, Any] = {"img_size": size}
    if config.output_stride is not None:
        wanted["output_stride"] = config.output_stride
    packaged = config.pretrained and config.name in PACKAGED
    while True:
        try:
            options = {"num_classes": num_classes, **wanted, **(config.kwargs or {})}
            network = _create(config.name, config.pretrained and not packaged, options)
            break
        except UserError:
            raise
        except TypeError as error:  # not every backbone takes both options: leave out the one that it does not know
            refused = [name for name in wanted if f"unexpected keyword argument '{name}'" in str(error)]
            if not refused:
                raise UserError(f"model {config.name} with model.kwargs={config.kwargs}: {error}") from error
            del wanted[refused[0]]
        except Exception as error:  # timm's own checks come in many types
            raise UserError(f"model {config.name} at {size}x{size} could not be made: {error}") from error
    if packaged:
        load_packaged(network, config.name, head_keys(network))
    if config.pretrained and num_classes != (getattr(network, "pretrained_cfg", None) or {}).get("num_classes"):
        zero_classifier(network)
    ignored = config.output_stride is not None and "output_stride" not in wanted
    note = f"{config.name} takes no output_stride: its maps keep the backbone's own stride"
    return network, [note] if ignored and "img_size" not in wanted else []


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """timm's network of this name. Its weights come from the cache or from timm's place of download.

    Raises:
        UserError: the weights are in neither. The other errors are timm's own.
    """
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)  # else each of the Hub's attempts prints two lines
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        return network
    except OSError as error:  # all errors of a download, the Hub's own included
        if not pretrained:
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        names = ", ".join(package.also[0] for package in PACKAGED.values())
        raise UserError(
            f"weights of {name} are neither in the cache nor downloadable ({cause}): give model.checkpoint=FILE or a packaged"
            f" network ({names})"
        ) from error
    finally:
        log.setLevel(before)


def _from_factory(config: ModelConfig, num_classes: int) -> nn.Module:
    assert config.factory is not None
    module_name, function_name = config.factory.split(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model.factory={config.factory}: {error}; it must be importable from here") from error
    try:
        parameters = inspect.signature(function).parameters
        takes_classes = "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    except ValueError:  # some built-in callables have no signature
        takes_classes = True
    classes = {"num_classes": num_classes} if takes_classes else {}
    try:
        network = function(**{**classes, **(config.kwargs or {})})
    except (TypeError, ValueError) as error:
        raise UserError(f"model.factory={config.factory} with model.kwargs={config.kwargs}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.factory={config.factory} must return a torch.nn.Module, got {type(network).__name__}")
    return network

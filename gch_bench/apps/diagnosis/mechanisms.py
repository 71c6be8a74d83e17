"""The modes of diagnose.py that look at mechanisms alone: describe says what they are, match makes them equally strong.

Both print, and write no files. They need a map's size: grid=[HEIGHT,WIDTH], or the map of the first of stages= of a network.
"""

import math
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

from hydra.errors import MissingConfigException

from gch_bench.apps.cli import noise_preset
from gch_bench.apps.diagnosis.subjects import one_network
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.overrides import written
from gch_bench.config.parse import parse
from gch_bench.config.run import NoiseConfig
from gch_bench.display import Display
from gch_bench.errors import FieldError, UserError
from gch_bench.noise.desiderata import Description, describe
from gch_bench.noise.dropout import Dropout
from gch_bench.noise.entropy import GREEN
from gch_bench.noise.gate_numbers import GateNumbers
from gch_bench.noise.hooks import Placement, StageHook, stage_grids
from gch_bench.noise.matching import QUANTITIES, match_strength, not_applicable
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.placement import random_images
from gch_bench.noise.stages import find_stage
from gch_bench.noise.table import make_mechanism
from gch_bench.threads import torch_threads

NUMBERS = {  # field of GateNumbers -> its name in the table
    "bias": "largest |E xi(x) - 1| over the sites",
    "nonpositive": "share of xi(x) <= 0",
    "neighbours": "correlation of neighbouring gates",
    "gate_variance": "gate variance, mean over sites",
    "log_variance": "variance of log xi, mean over sites",
}


class Grid(NamedTuple):
    """The size of a map, and where it comes from, in words."""

    height: int
    width: int
    origin: str


class Reference(NamedTuple):
    """What the mechanisms of mode=match are to reach."""

    value: float
    words: str  # its name and value


def describe_mechanisms(config: DiagnoseConfig) -> None:
    """Print what each mechanism is, and which desiderata it meets on the map.

    Raises:
        UserError: there is no mechanism, an option of one is out of range, or there is no such map.
    """
    display = Display(True)
    with torch_threads(config.threads):
        chosen = [(noise, mechanism_of(noise)) for noise in chosen_noise(config)]
        grid = _grid(config)
        display.line(f"map: {grid.height}x{grid.width}, {grid.origin}")
        for noise, mechanism in chosen:
            try:
                _show(display, noise.name, mechanism, describe(mechanism, grid.height, grid.width))
            except ValueError as error:
                raise UserError(f"noise={noise.name} on a {grid.height}x{grid.width} map: {error}") from error


def match_mechanisms(config: DiagnoseConfig) -> None:
    """Print the overrides with which each mechanism is as strong as the reference; what cannot be so strong is a comment.

    Raises:
        UserError: there is no mechanism or no such reference, an option is out of range, or there is no such map.
    """
    display = Display(True)
    with torch_threads(config.threads):
        chosen = [(noise, mechanism_of(noise)) for noise in chosen_noise(config)]
        named = _reference_noise(config)
        grid = _grid(config)
        reference = _reference(config, named, grid)
        quantity = config.quantity.replace("_", " ")
        display.line(f"# map: {grid.height}x{grid.width}, {grid.origin}; {quantity}: mean over its sites")
        if any(mechanism.adds for _, mechanism in chosen):
            display.line("# additive noise: the variance of what is added to a map of ones")
        if any(mechanism.place in ("branch", "tokens") for _, mechanism in chosen):
            display.line("# noise on branches, or that removes tokens: the variance of its own gate, which is not on the map")
        for noise, _ in chosen:
            display.line(_matched(noise, config.quantity, reference, grid))


def chosen_noise(config: DiagnoseConfig) -> list[NoiseConfig]:
    """The mechanisms of noise=; UserError if one is none."""
    chosen = config.mechanisms or [config.noise]
    if any(noise.law is None for noise in chosen):
        raise UserError(
            f"noise=none has no law that mode={config.mode} could look at: give a mechanism such as noise=gch, or several,"
            " noise=[gch,dropout]"
        )
    return chosen


def mechanism_of(noise: NoiseConfig) -> Mechanism:
    """The mechanism that a section `noise` describes; FieldError if an option is out of range."""
    assert noise.law is not None
    try:
        return make_mechanism(noise.law, noise.kernel, noise.options, noise.injection)
    except FieldError as error:
        raise error.in_group(f"noise={noise.name}: noise") from error


def _grid(config: DiagnoseConfig) -> Grid:
    """The map of grid=, or that of the first of stages= of the network of model=."""
    if config.grid is not None:
        height, width = config.grid
        return Grid(height, width, "as given by grid")
    subject = one_network(config)
    network, size, stage = subject.network, subject.size, config.places[0]
    assert network is not None
    assert size is not None
    try:
        module = find_stage(network, stage)
        hook = StageHook(Placement(stage, module), network, Dropout(), train=False, test=False)  # it never acts
        hook.register(network.get_submodule(module))
        height, width = stage_grids(network, random_images(size, size))[stage]
    except ValueError as error:
        raise UserError(f"stages={config.places}: {error}; or give the map itself, grid=[HEIGHT,WIDTH]") from error
    where = f"stage {stage} ({module}) of {subject.label} at {size}x{size} pixels"
    return Grid(height, width, f"{where} (grid=[HEIGHT,WIDTH] sets another)")


def _show(display: Display, name: str, mechanism: Mechanism, found: Description) -> None:
    display.line(f"\n{name}: {mechanism}")
    for part in ("law", "kernel", "injection"):
        display.line(f"  {part + ':':<11}{getattr(found, part)}")
    size = f"on a {found.grid[0]}x{found.grid[1]} map"
    rows = [[f"{each.key}  {each.desideratum}", each.holds] for each in found.verdicts]
    display.table(f"{name}: desiderata {size}", ["desideratum", "holds"], rows, [f"{v.key}: {v.why}" for v in found.verdicts])
    parameters = [[each.name, f"{each.value:.6g}"] for each in found.parameters]
    notes = [f"{each.name}: {each.fixed_by}" for each in found.parameters]
    display.table(f"{name}: free parameters {size}", ["parameter", "value"], parameters, notes)
    numbers = _numbers(found.numbers)
    if numbers:
        display.table(f"{name}: numbers of the gate {size}", ["number", "value", "standard error"], numbers)
    if found.entropy is not None:
        gaps = [[kernel, f"{gap:.5f}"] for kernel, gap in found.entropy.gap_per_site.items()]
        gaps.insert(0, [GREEN, f"{0:.5f}"])
        title = f"{name}: entropy below the Dirichlet Green field's at the energy {found.entropy.energy:.4g}"
        display.table(title, ["kernel", "nats per site"], gaps)


def _numbers(found: GateNumbers) -> list[list[str]]:
    rows = []
    for field, words in NUMBERS.items():
        number = getattr(found, field)
        if number is not None:
            error = "exact" if number.error is None else f"{number.error:.1g}"
            rows.append([words, f"{number.value:.4g}", error])
    return rows


def _reference_noise(config: DiagnoseConfig) -> NoiseConfig | float:
    """The mechanism of reference=, or the number that it is."""
    try:
        value = float(config.reference)
    except ValueError:
        noise = parse(noise_preset(config.reference), NoiseConfig)
        if noise.law is None:
            rule = "must be a mechanism such as gch, or a number > 0, got none, which has no strength"
            raise FieldError("reference", rule) from None
        return noise
    if not 0 < value < math.inf:
        raise FieldError("reference", f"must be a mechanism such as gch, or a finite number > 0, got {config.reference}")
    return value


def _reference(config: DiagnoseConfig, named: NoiseConfig | float, grid: Grid) -> Reference:
    if not isinstance(named, NoiseConfig):
        return Reference(named, f"{named:g}")
    mechanism = mechanism_of(named)
    reason = not_applicable(mechanism, config.quantity)
    if reason:
        raise UserError(f"reference={named.name} has no quantity={config.quantity}: {reason}; give another, or a number")
    try:
        found = QUANTITIES[config.quantity](mechanism, grid.height, grid.width)
    except ValueError as error:
        raise UserError(f"reference={named.name} on a {grid.height}x{grid.width} map: {error}") from error
    assert found is not None, "not_applicable has excluded it"
    if not found.value > 0:
        raise UserError(
            f"reference={named.name} has the {config.quantity} 0 on a {grid.height}x{grid.width} map: give a number > 0"
        )
    return Reference(found.value, f"{named.name} {found.value:.4f}")


def _matched(noise: NoiseConfig, quantity: str, reference: Reference, grid: Grid) -> str:
    """The line of one mechanism: its overrides, with what they reach as a comment."""
    assert noise.law is not None
    words = quantity.replace("_", " ")
    try:
        found = match_strength(
            noise.law, noise.kernel, noise.options, reference.value, grid.height, grid.width, noise.injection, quantity
        )
    except ValueError as error:
        raise UserError(f"noise={noise.name} on a {grid.height}x{grid.width} map: {error}") from error
    if found.strength is None:
        return f"# noise={noise.name}: {words} {found.why_not}, reference {reference.words}"
    assert found.reached is not None
    strong: dict[str, Any] = {found.option: found.strength}
    line = " ".join(_overrides(replace(noise, **strong), found.option))
    return f"{line}   # {words} {found.reached.value:.4f}, reference {reference.words}"


def _overrides(noise: NoiseConfig, strength: str) -> Iterator[str]:
    """The overrides, as a shell takes them, that make this noise out of the preset of its name, or else out of noise=none."""
    try:
        preset, base = parse(noise_preset(noise.name), NoiseConfig), noise.name
    except MissingConfigException:
        preset, base = parse(noise_preset("none"), NoiseConfig), "none"
    yield f"noise={base}"
    for name in (each.name for each in fields(noise)):
        value = getattr(noise, name)
        if name == strength or value != getattr(preset, name):
            yield shlex.quote(f"noise.{name}={written(value)}")

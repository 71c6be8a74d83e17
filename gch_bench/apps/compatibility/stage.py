"""Everything that is measured of one mechanism at one stage, and the line on it in the summary."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from gch_bench.apps.compatibility.bench import Bench, noisy_passes, norm_variances
from gch_bench.apps.compatibility.features import DISTORTION, INSIDE, NORM, RANKING, feature_rows
from gch_bench.apps.compatibility.gates import MEAN, RATIO, ROUGH, gate_rows
from gch_bench.apps.compatibility.measure import Measured, Pairs, coherence_and_positivity, measure
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.moments import distortion
from gch_bench.noise.placement import MINIMUM_CHANGE
from gch_bench.noise.strength import draw_gates
from gch_bench.results.compatibility import Row, frame, mean_row, not_applicable, row


class StageResult(NamedTuple):
    """The tables of one mechanism at one stage."""

    rows: pd.DataFrame
    images: pd.DataFrame  # a row per image: coherence, positivity, distortions (roots of mean squares), margin, flips
    summary: dict[str, Any]


def examine(bench: Bench, pairs: Pairs, mechanism: Mechanism, name: str, passes: int, gates: int, seed: int) -> StageResult:
    """Measure a mechanism at the stage that `bench` opens.

    Args:
        pairs: of the clean map, from `measure.pairs_of`.
        name: of the mechanism, in the tables.
        passes: T, noisy forward passes of all images.
        gates: draws for what concerns the gate alone.

    Raises:
        ValueError: the mechanism cannot act at this stage.
    """
    height, width = bench.map_MCHW.shape[2:]
    measured = measure(bench, pairs, noisy_passes(bench, mechanism, passes, seed))
    rows: list[Row] = []
    if mechanism.place == "output":
        rows += gate_rows(mechanism, draw_gates(mechanism, height, width, gates, (seed, bench.stage)))
    else:
        rows += [not_applicable(section, "gate", INSIDE) for section in (RATIO, ROUGH, MEAN)]
    rows += feature_rows(mechanism, bench, pairs, measured)
    rows += _norm_rows(bench, mechanism, measured, seed)
    table = frame(rows)
    where = {"stage": bench.stage, "module": bench.module, "height": height, "width": width, "mechanism": name}
    return StageResult(
        _labelled(table, where), _labelled(_images(bench, measured), where), {**where, **_summary(table, mechanism)}
    )


def _labelled(table: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    labels = pd.DataFrame({key: [value] * len(table) for key, value in where.items()})
    return pd.concat([labels, table], axis=1)


def _norm_rows(bench: Bench, mechanism: Mechanism, measured: Measured, seed: int) -> Iterator[Row]:
    """What the layers after the stage make of the noise: how much reaches the logits, and what BatchNorm would record."""
    change = measured.logits.mean(0)
    yield _root(mean_row(NORM, "relative change of the logits", change))
    if measured.map is None:
        yield not_applicable(NORM, "surviving share", INSIDE)
    else:
        moved = measured.map.mean(0)
        share, error = _ratio(change, moved)
        yield _root(row(NORM, "surviving share", share, error, None, len(change)))._replace(
            note="relative change of the logits over that of the stage's map (roots of means of squares)"
        )
        yield _channel_inflation(bench, mechanism, measured)
    if not bench.norms:
        yield not_applicable(NORM, "BatchNorm inflation", "no BatchNorm follows the stage")
        return
    noisy = norm_variances(bench, mechanism, seed)
    ratios = {name: float((noisy[name] / clean)[clean > 1e-12].mean()) for name, clean in bench.norms.items() if name in noisy}
    first, worst = next(iter(ratios)), max(ratios, key=lambda name: ratios[name])
    note = "variance of the layer's input with noise over that without, mean over channels, in eval mode"
    for word, name in (("first", first), ("largest", worst)):
        yield Row(NORM, f"BatchNorm inflation, {word}", name, measured=ratios[name], n=len(bench.images), note=note)


def _root(made: Row) -> Row:
    """A row on a mean of squares as one on its root."""
    measured, low, high = (math.sqrt(max(value, 0.0)) for value in (made.measured, made.low, made.high))
    return made._replace(measured=measured, low=low, high=high)


def _ratio(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """The ratio of two means over the same images, with its standard error by the delta method."""
    if not two.mean() > 0:
        return math.nan, math.nan
    share = float(one.mean() / two.mean())
    return share, float((one - share * two).std(ddof=1) / math.sqrt(len(one)) / two.mean())


def _channel_inflation(bench: Bench, mechanism: Mechanism, measured: Measured) -> Row:
    """The variance of the stage's own channels over images and sites: what a BatchNorm right after it would record."""
    quantity = "variance inflation of the stage's channels"
    assert measured.second is not None
    assert measured.mean is not None
    clean = bench.map_MCHW.double()
    variance = clean.square().mean((0, 2, 3)) - clean.mean((0, 2, 3)).square()
    if not float(variance.sum()) > 1e-9 * float(clean.square().mean()):
        return not_applicable(NORM, quantity, "no channel varies")
    inflation = float((measured.second - measured.mean.square()).sum() / variance.sum())
    moments = mechanism.moments(*bench.map_MCHW.shape[2:])
    theory = math.nan
    if moments is not None:
        second = torch.stack([distortion(mechanism, moments, each.flatten(1).T).second_C for each in bench.map_MCHW]).mean(0)
        mean = (moments.mean_N[:, None] * clean.mean(0).flatten(1).T).mean(0) if not mechanism.adds else clean.mean((0, 2, 3))
        theory = float((second - mean.square()).sum() / variance.sum())
    note = "of the variances over images and sites, summed over channels; no interval, and so no test"
    return Row(NORM, quantity, "all channels", measured=inflation, theory=theory, n=len(clean), note=note)


def _images(bench: Bench, measured: Measured) -> pd.DataFrame:
    coherence, positivity = coherence_and_positivity(bench.map_MCHW)
    top = bench.logits_MK.topk(2, dim=1).values
    table = {
        "image": np.arange(len(bench.images)),
        "coherence": coherence,
        "positivity": positivity,
        "logit_margin": (top[:, 0] - top[:, 1]).numpy(),
        "flips": measured.flipped.mean(0),
        "logit_distortion": np.sqrt(measured.logits.mean(0)),
    }
    if measured.map is not None and measured.pooled is not None and measured.cosine is not None:
        table |= {
            "map_distortion": np.sqrt(measured.map.mean(0)),
            "pooled_distortion": np.sqrt(measured.pooled.mean(0)),
            "cosine": measured.cosine.mean(0),
        }
    return pd.DataFrame(table)


def _summary(table: pd.DataFrame, mechanism: Mechanism) -> dict[str, Any]:
    """The numbers of the summary: one line for each mechanism and stage. NaN: not applicable, or not measured."""

    def value(section: str, quantity: str) -> float:
        found = table[(table["section"] == section) & (table["quantity"] == quantity)]["measured"]
        return float(found.iloc[0]) if len(found) else math.nan

    return {
        "positive": float(mechanism.positive) if mechanism.place == "output" else math.nan,
        "singular_share": value(RATIO, "singular share"),
        "largest_site_bias": value(MEAN, "mean at a site") - 1,
        "pooled_bias": value(MEAN, "mean over sites") - 1,
        "gate_variance": value(MEAN, "gate variance"),
        "clear_order_lost": value(RANKING, "clear order lost"),
        "roughness": value(ROUGH, "per site"),
        "map_distortion": math.sqrt(max(value(DISTORTION, "squared distortion of the map"), 0)),
        "pooled_distortion": math.sqrt(max(value(DISTORTION, "squared distortion of the pooled feature"), 0)),
        "logit_change": (change := value(NORM, "relative change of the logits")),
        "surviving_share": value(NORM, "surviving share"),
        "top_class_flips": value_of(table, RANKING, "top class flips", "all images"),
        "survives": bool(change >= MINIMUM_CHANGE),
    }


def value_of(table: pd.DataFrame, section: str, quantity: str, at: str) -> float:
    """The measured value of one row; NaN if there is none."""
    found = table[(table["section"] == section) & (table["quantity"] == quantity) & (table["at"] == at)]["measured"]
    return float(found.iloc[0]) if len(found) else math.nan

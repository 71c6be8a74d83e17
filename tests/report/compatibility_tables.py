"""Made-up results of mode=compatibility with hostile names, for tests of their report."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pages import EVIL

from gch_bench.report.compatibility import Section
from gch_bench.report.compatibility_figures import all_figures
from gch_bench.results.compatibility import Row, frame, judged, mean_row, not_applicable

RNG = np.random.default_rng(0)
NOTHING = dict.fromkeys(
    ("positive", "singular_share", "largest_site_bias", "pooled_bias", "gate_variance", "clear_order_lost", "roughness",
     "map_distortion", "pooled_distortion", "surviving_share"),
    math.nan,
)  # fmt: skip
GATE = {
    "positive": 1.0, "singular_share": 0.0, "largest_site_bias": -0.03, "pooled_bias": 0.0, "gate_variance": 0.4,
    "clear_order_lost": 0.03, "roughness": 0.81, "map_distortion": 0.6, "pooled_distortion": 0.21, "surviving_share": 0.3,
}  # fmt: skip
CHANGE = {"logit_change": 0.2, "top_class_flips": 0.12, "survives": True}
Tables = dict[str, pd.DataFrame]


def around(mean: float, spread: float = 0.1, count: int = 64) -> np.ndarray:
    """Values with exactly this mean."""
    values = RNG.normal(0, spread, count)
    return values - values.mean() + mean


def gate_rows(smooth: bool = True) -> Iterator[Row]:
    """Rows of a gate with a Gaussian log-ratio, or of a mask, whose site is as likely dropped at every margin."""
    if smooth:
        for i, variance in enumerate((0.4, 0.8, 1.0)):
            yield mean_row("log-ratio", "variance", around(variance), variance, at=f"pair {i}", x=variance)
        for level in (-1.0, 0.0, 1.0):
            yield Row("log-ratio", "quantile", "pair 0", level, level, level - 0.1, level + 0.1, level, 0.5, 100)
    else:
        yield not_applicable("log-ratio", "variance", "a mask sets sites to zero")
    yield mean_row("mean", "mean over sites", np.ones(64) if smooth else around(1.0), 1.0)
    yield mean_row("mean", "mean at a site", around(0.97, 0.01), None, at="row 0, column 0: the most deviant of 49")
    for i, margin in enumerate((0.1, 1.0, 3.0)):
        lost, unit = ((0.45, 0.16, 0.001)[i], "margin / s") if smooth else (0.1, "log-margin")
        yield mean_row("ranking", "order lost", around(lost, 0.01), lost, at=f"{unit} {margin:g}", x=margin)
    yield mean_row("distortion", "squared distortion of the pooled feature", around(0.04, 0.01))
    yield mean_row("norm", "surviving share", around(0.3))


def logit_rows() -> Iterator[Row]:
    """What every mechanism has, also one inside the stage."""
    for i, share in enumerate((0.5, 0.0)):
        yield mean_row("ranking", "top class flips", around(share, 0.1 * share), at=f"fifth {i + 1}", x=0.1 + i)
    yield mean_row("ranking", "top class flips", around(0.12), at="all images")
    yield mean_row("norm", "relative change of the logits", around(0.2))


def make_tables(mechanisms: dict[str, bool | None], stages: tuple[str, ...] = ("L4",)) -> Tables:
    """Tables of mechanisms: with a smooth gate (True), a mask (False), or inside the stage, without a gate (None)."""
    summary, rows, images = [], [], []
    for stage in stages:
        for name, smooth in mechanisms.items():
            where: dict[str, Any] = {"stage": stage, "module": "bn2", "height": 7, "width": 7, "mechanism": name}
            own = frame([*([] if smooth is None else gate_rows(smooth)), *logit_rows()])
            rows.append(pd.DataFrame({key: [value] * len(own) for key, value in where.items()}).join(own))
            numbers = (
                NOTHING
                if smooth is None
                else GATE | ({} if smooth else {"positive": 0.0, "singular_share": 0.19, "roughness": math.nan})
            )
            summary.append(where | numbers | CHANGE)
            facts = {name: RNG.random(20) + 0.1 for name in ("coherence", "logit_margin", "flips", "logit_distortion")}
            pooled = {} if smooth is None else {"pooled_distortion": RNG.random(20)}
            images.append(
                pd.DataFrame({**{key: [value] * 20 for key, value in where.items()}, **facts, "positivity": 1.0, **pooled})
            )
    return {
        "summary": pd.DataFrame(summary),
        "measurements": judged(pd.concat(rows, ignore_index=True)),
        "images": pd.concat(images, ignore_index=True),
    }


def make_section(tables: Tables, figures: bool = True) -> Section:
    facts = {
        "kind": "compatibility", "command": f"diagnose.py mode=compatibility model={EVIL}", "commit": "c0ffee",
        "network": {"label": EVIL, "origin": "package x", "weights": "abc"}, "images": "64 images", "versions": {"torch": EVIL},
        "mechanisms": {EVIL: f"Gate({EVIL})"}, "warnings": [f"{EVIL} was left out"],
    }  # fmt: skip
    return Section(facts, tables, all_figures(tables) if figures else {})

"""Tables of Jacobians measured at several images: how far they compose at each image, and means over the images.

Every number holds at these images: a network has other Jacobians at others. Definitions: docs/geometry.md.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import MEASURED, ChainReport
from gch_bench.spectral.composition import (
    Product,
    chain_composition,
    composition_defect,
    log_top,
    product_with,
    rotated_defect,
)

KEYS = {"factors": ["index", "name"], "interfaces": ["index", "form", "first", "second"], "summary": []}
COMPOSITION, CHAIN = "composition", "chain"
COLUMNS = ("table", "index", "form", "name", "first", "second", "quantity", "mean", "sd", "images")


class Compositions:
    """Collects, image after image, how far the Jacobians of a chain's blocks compose.

    It reads the factors on their way to the analysis, and keeps one Jacobian per block, that of the image before.
    """

    def __init__(self) -> None:
        self._interfaces: list[dict[str, Any]] = []
        self._chains: list[dict[str, Any]] = []
        self._others: dict[int, Tensor] = {}

    def watch(self, factors: Iterable[Factor], image: str, whole: Tensor) -> Iterator[Factor]:
        """Yield the ``factors`` measured at ``image`` unchanged, and note how they compose.

        Args:
            whole: float64 (outputs of the last factor, inputs of the first), the chain's Jacobian differentiated together.

        Raises:
            ValueError: if factors do not compose, or a factor but the first has no ``together``.
        """
        before: Factor | None = None
        product: Product | None = None
        for index, factor in enumerate(factors):
            if before is not None:
                self._interfaces.append({**self._row(index - 1, before, factor), "image": image})
                self._others[index - 1] = before.matrix
            product = product_with(product, factor.matrix)
            yield factor
            before = factor
        if product is not None:
            self._chains.append({"image": image, **chain_composition(product, whole)._asdict()})

    def _row(self, index: int, first: Factor, second: Factor) -> dict[str, Any]:
        if second.together is None:
            raise ValueError(f"factor {second.name} must come with the Jacobian of {first.name} and itself together")
        other = self._others.get(index)
        given = first.matrix, second.matrix, second.together
        return {
            "index": index,
            "first": first.name,
            "second": second.name,
            "composition_defect": composition_defect(*given),
            "composition_defect_null": rotated_defect(*given),
            "composition_defect_other_image": math.nan if other is None else composition_defect(other, *given[1:]),
            "log_top_together": log_top(second.together),
            "log_top_product": log_top(second.matrix @ first.matrix),
        }

    def interfaces(self) -> pd.DataFrame:
        """A row per interface and image. Columns (definitions of this project, docs/geometry.md):

        * index, first, second, image: the interface and the image at which it was measured;
        * composition_defect: ||T - J_{l+1} J_l||_F / ||T||_F;
        * composition_defect_null: its root mean square with a Haar rotation between the two, about sqrt 2;
        * composition_defect_other_image: with J_l of the image before in place of this image's; nan for the first image;
        * log_top_together, log_top_product: log s_1 of T and of J_{l+1} J_l.
        """
        names = ("index", "first", "second", "image", "composition_defect", "composition_defect_null")
        names += ("composition_defect_other_image", "log_top_together", "log_top_product")
        return pd.DataFrame(self._interfaces, columns=list(names))

    def chains(self) -> pd.DataFrame:
        """A row per image: image, and the fields of ``ChainComposition`` for the chain as a whole."""
        return pd.DataFrame(self._chains)


def over_images(reports: Sequence[ChainReport], compositions: Compositions | None = None) -> pd.DataFrame:
    """Means and standard deviations over images of what was measured at each of them.

    Args:
        reports: one per image, on the measured Jacobians of the same blocks of one network.
        compositions: if given, its two tables are part of the result.

    Returns:
        Long format, with the columns COLUMNS. ``table`` is factors, interfaces, summary, composition (a row of it is an
        interface) or chain. ``index``, ``form``, ``name``, ``first`` and ``second`` say which row of that table is meant, and
        are missing where they do not apply. ``images`` counts the images at which the quantity is a number; ``sd`` is that
        of a sample (divided by images - 1), nan for one image. A quantity that is yes or no has the share of yes as its mean.

    Raises:
        ValueError: if there is no report, one is not on measured Jacobians, or reports have different blocks.
    """
    _check(reports)
    parts = []
    for table, keys in KEYS.items():
        if table == "summary":
            frames = [pd.DataFrame([report.summary]) for report in reports]
        else:
            frames = [getattr(report, table) for report in reports]
        parts.append(_long(table, frames, keys))
    if compositions is not None:
        parts.append(_long(COMPOSITION, [compositions.interfaces().drop(columns="image")], ["index", "first", "second"]))
        parts.append(_long(CHAIN, [compositions.chains().drop(columns="image", errors="ignore")], []))
    filled = [part for part in parts if len(part)]
    whole = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
    return whole.reindex(columns=list(COLUMNS))


def _check(reports: Sequence[ChainReport]) -> None:
    if not reports:
        raise ValueError("reports must hold at least one image's report, got none")
    for report in reports:
        if report.kind != MEASURED:
            raise ValueError(f"reports must be on measured Jacobians, got {report.chain} on {report.kind}")
        names, wanted = list(report.factors["name"]), list(reports[0].factors["name"])
        if names != wanted:
            raise ValueError(
                f"reports must be on the same blocks, got {', '.join(names)} in {report.chain} beside {', '.join(wanted)}"
            )


def _long(table: str, frames: Sequence[pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """One row per key and quantity, in the order of the tables."""
    whole = pd.concat([frame for frame in frames if len(frame)] or [pd.DataFrame()], ignore_index=True)
    keys = [key for key in keys if key in whole]
    quantities = [
        name for name in whole.select_dtypes(["number", "bool"]).columns if name not in keys and name not in ("chain", "kind")
    ]
    if not quantities:
        return pd.DataFrame()
    values = whole[[*keys, *quantities]].astype(dict.fromkeys(quantities, "float64"))
    long = values.melt(keys, var_name="quantity", ignore_index=True)
    found = long.groupby([*keys, "quantity"], sort=False, dropna=False)["value"].agg(["mean", "std", "count"]).reset_index()
    found = found.rename(columns={"std": "sd", "count": "images"})
    found.insert(0, "table", table)
    return found

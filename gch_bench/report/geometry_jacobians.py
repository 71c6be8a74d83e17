"""What is said of measured Jacobians over several images: whether they compose, beside chance."""

import math
from collections.abc import Callable, Mapping

import pandas as pd

from gch_bench.report.geometry_quantities import Quantity, Row, Section, plain

COMPOSITION, CHAIN = "composition", "chain"  # tables in over_images.csv
TOGETHER = "none: compare it with the product's"
OverImages = Mapping[str, pd.DataFrame]  # label -> over_images.csv of that network


def _with_sd(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value, sd = (float(row.get(each, math.nan)) for each in (name, f"{name}_sd"))
        text = plain(value)
        return text if text in ("-", "0") or math.isnan(sd) else f"{text} ± {plain(sd, 2)}"

    return cell


def _quantity(header: str, name: str, meaning: str, chance: str) -> Quantity:
    return Quantity(header, name, meaning, chance, _with_sd(name))


COMPOSED = Section(
    "Composition of neighbouring blocks",
    "composition.csv; means ± standard deviations over images: over_images.csv",
    [
        Quantity("from", "first", "block that writes", ""),
        Quantity("to", "second", "block that reads", ""),
        _quantity(
            "defect", "composition_defect", "composition defect: Frobenius norm of T - J2 J1 over that of T, with the Jacobians"
            " of both blocks and T, that of both differentiated together; 0 if they compose", "see rotated",
        ),
        _quantity(
            "rotated", "composition_defect_null", "root mean square of the defect with a random rotation between both blocks",
            "it is itself what the defect is by chance, at least 1",
        ),
        _quantity(
            "other image", "composition_defect_other_image", "the defect with the Jacobian of the first block at the image"
            " before", "see rotated",
        ),
        _quantity("log s_1 of T", "log_top_together", "of both blocks differentiated together", TOGETHER),
        _quantity("log s_1 of J2 J1", "log_top_product", "of the product of both Jacobians", "none: compare it with T's"),
    ],
)  # fmt: skip
COMPOSED_CHAIN = Section(
    "Composition of the whole chain",
    "over_images.csv (table = chain)",
    [
        _quantity(
            "defect of all", "composition_defect", "composition defect of the product of all blocks and the Jacobian of them"
            " all differentiated together", "see all rotated",
        ),
        _quantity(
            "all rotated", "composition_defect_null", "root mean square of it with a random rotation at every interface",
            "it is itself what the defect of all is by chance, at least 1",
        ),
        _quantity("log s_1 together", "log_top_together", "of all blocks differentiated together", TOGETHER),
        _quantity("log s_1 of the product", "log_top_product", "of all Jacobians", "none: compare it with the one before"),
        _quantity("together - product", "log_top_difference", "difference of both", "none: 0 if they compose"),
        _quantity(
            "log M of the product", "log_top_normalised", "log s_1 of the product of the Jacobians, each scaled to the"
            " Frobenius norm sqrt d", "none: log gain has one",
        ),
    ],
)  # fmt: skip


def wide(over_images: pd.DataFrame, table: str) -> pd.DataFrame:
    """The rows of one table of over_images.csv: a column per quantity with its mean, and another with its _sd.

    No row if that table is not there, as for weights alone.
    """
    own = over_images[over_images["table"] == table] if len(over_images) else over_images
    rows = []
    for _, part in own.groupby("index", dropna=False, sort=False) if len(own) else ():
        row = {name: part[name].iloc[0] for name in ("first", "second")}
        row |= dict(zip(part["quantity"], part["mean"], strict=True))
        rows.append(row | {f"{name}_sd": sd for name, sd in zip(part["quantity"], part["sd"], strict=True)})
    return pd.DataFrame(rows)


def composition_sentence(interfaces: pd.DataFrame, chain: pd.DataFrame) -> str:
    """In words how far the blocks of a network compose; "" where every Jacobian is zero.

    Args:
        interfaces, chain: what `wide` returns of the tables COMPOSITION and CHAIN; ``interfaces`` has a row or more.
    """
    defect = interfaces["composition_defect"].dropna()
    if not len(defect):
        return ""
    text = (
        f"The product of two neighbouring blocks' Jacobians is off by {defect.median():.0%} of the true one (median over"
        f" {len(defect)} interfaces; largest {defect.max():.0%}), where a random rotation between both makes it"
        f" {interfaces['composition_defect_null'].median():.0%}"
    )
    if len(chain) and math.isfinite(chain["composition_defect"].iloc[0]):
        own = chain.iloc[0]
        text += (
            f". The product of all blocks is off by {own['composition_defect']:.0%}; rotations:"
            f" {own['composition_defect_null']:.0%}"
        )
    return f"{text}."

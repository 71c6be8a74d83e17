"""Tables over images: means and standard deviations against numpy, and composition of made and of measured Jacobians."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from gch_bench.geometry.analysis import analyse
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.measured import COLUMNS, INTERFACE_COLUMNS, Compositions, over_images
from gch_bench.results.geometry import MEASURED, STATIC, ChainReport
from gch_bench.spectral.composition import composition_defect
from gch_bench.spectral.jacobian import chain_jacobian, network_jacobians

BLOCKS = ["0", "2", "3"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)]
    return nn.Sequential(
        nn.Sequential(layers[0], nn.GELU()), layers[1], nn.Sequential(layers[2], nn.GELU()), layers[3]
    ).double()


def factors_at(model: nn.Module, image: Tensor) -> list[Factor]:
    return [
        Factor(each.name, each.matrix, kind=MEASURED, together=each.together)
        for each in network_jacobians(model, BLOCKS, image)
    ]


def test_measured_networks_from_images_to_means() -> None:
    model, compositions = network(), Compositions()
    images = torch.randn(3, 1, 3, 8, 8, dtype=torch.float64)
    reports, chains = [], []
    for number, image in enumerate(images):
        chains.append(factors_at(model, image))
        watched = compositions.watch(chains[-1], f"image-{number}", chain_jacobian(model, BLOCKS, image))
        reports.append(analyse(watched, f"image-{number}", ""))
    table = compositions.interfaces()
    assert tuple(table.columns) == INTERFACE_COLUMNS
    assert table[["index", "first", "second", "image"]].to_numpy().tolist() == [
        [index, first, second, f"image-{number}"]
        for number in range(3)
        for index, first, second in ((0, "0", "2"), (1, "2", "3"))
    ]
    for number, chain in enumerate(chains):
        for index in range(2):
            row = table.iloc[2 * number + index]
            first, second, both = chain[index].matrix, chain[index + 1].matrix, chain[index + 1].together
            assert both is not None
            assert row["composition_defect"] == pytest.approx(float((both - second @ first).norm() / both.norm()))
            assert row["log_top_together"] == pytest.approx(math.log(np.linalg.norm(both.numpy(), 2)))
            assert row["log_top_product"] == pytest.approx(math.log(np.linalg.norm((second @ first).numpy(), 2)))
            assert row["composition_defect"] < row["composition_defect_null"]
            if number:
                expected = composition_defect(chains[number - 1][index].matrix, second, both)
                assert row["composition_defect_other_image"] == pytest.approx(expected)
            else:
                assert math.isnan(row["composition_defect_other_image"])
    found = over_images(reports, compositions)
    assert tuple(found.columns) == COLUMNS
    assert set(found["table"]) == {"factors", "interfaces", "summary", "composition", "chain"}
    at = found.query("table == 'factors' and index == 1 and quantity == 'exponent'").iloc[0]
    values = [report.factors["exponent"][1] for report in reports]
    assert (at["name"], at["images"]) == ("2", 3)
    assert (at["mean"], at["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    other = found.query("table == 'composition' and quantity == 'composition_defect_other_image'")
    assert other["images"].tolist() == [2, 2]
    whole = found.query("table == 'chain' and quantity == 'log_top_difference'").iloc[0]
    assert whole["mean"] == pytest.approx(compositions.chains()["log_top_difference"].mean())


def made(
    exponents: list[float], certified: list[bool], names: tuple[str, ...] = ("a", "b"), kind: str = MEASURED
) -> ChainReport:
    factors = pd.DataFrame(
        {"chain": "c", "kind": kind, "index": [0, 1], "name": names, "chart": "adequate", "exponent": exponents}
    )
    interfaces = pd.DataFrame(
        {"index": [0, 0], "form": ["block", "branch"], "first": "a", "second": "b", "certified": certified}
    )
    return ChainReport("c", kind, "", factors, interfaces, summary={"mean_exponent": float(np.mean(exponents))})


def test_forms_stay_apart_yes_and_no_are_shares_and_words_are_left_out() -> None:
    found = over_images([made([1.0, 2.0], [True, True]), made([3.0, math.nan], [False, True])])
    wanted = [
        ("factors", 0, None, "a", "exponent", 2.0, math.sqrt(2), 2),
        ("factors", 1, None, "b", "exponent", 2.0, math.nan, 1),
        ("interfaces", 0, "block", None, "certified", 0.5, math.sqrt(0.5), 2),
        ("interfaces", 0, "branch", None, "certified", 1.0, 0.0, 2),
        ("summary", None, None, None, "mean_exponent", 1.5, math.nan, 1),
    ]
    columns = ["table", "index", "form", "name", "quantity", "mean", "sd", "images"]
    pd.testing.assert_frame_equal(found[columns], pd.DataFrame(wanted, columns=columns), check_dtype=False)


def test_one_image_has_no_standard_deviation() -> None:
    found = over_images([made([1.0, 2.0], [True, False])])
    assert found["sd"].isna().all()
    assert (found["images"] == 1).all()
    assert found.query("table == 'factors'")["mean"].tolist() == [1.0, 2.0]


def test_nothing_to_compare_gives_empty_tables() -> None:
    compositions = Compositions()
    assert tuple(compositions.interfaces().columns) == INTERFACE_COLUMNS
    found = over_images([made([1.0, 2.0], [True, False])], compositions)
    assert "composition" not in set(found["table"])


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="reports must hold at least one image's report"):
        over_images([])
    with pytest.raises(ValueError, match="reports must be on measured Jacobians, got c on static weights"):
        over_images([made([1.0, 2.0], [True, True], kind=STATIC)])
    with pytest.raises(ValueError, match="same blocks, got a, z in c beside a, b"):
        over_images([made([1.0, 2.0], [True, True]), made([1.0, 2.0], [True, True], names=("a", "z"))])
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="factor b must come with the Jacobian of a and itself together"):
        list(Compositions().watch([Factor("a", eye), Factor("b", eye)], "image", eye))

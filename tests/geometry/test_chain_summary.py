"""The numbers of a whole chain against the rows of its tables and against explicit products."""

import math

import numpy as np
import pytest
import torch
from geometry_chains import QUICK, gaussian, orthogonal, plain, power_law, report, residual

from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import BLOCK, BRANCH, headline_interfaces


def test_means_over_factors() -> None:
    made = report(plain())
    table, summary = made.factors, made.summary
    assert summary["factors"] == 4
    assert summary["mean_exponent"] == pytest.approx(table["exponent"].mean())
    assert summary["mean_square_exponent"] == pytest.approx(table["square_exponent"].mean())
    assert summary["mean_residual"] == pytest.approx(table["residual"].abs().mean())
    assert summary["chart_adequate_share"] == (table["chart"] == "adequate").mean()
    assert summary["spikes"] == table["spikes"].mean()
    assert summary["radial_sum"] == pytest.approx(table["radial"].sum())
    assert (summary["last_exponent"], summary["last_rank_90"]) == (table["exponent"][3], table["rank_90"][3])


def test_medians_over_interfaces_are_of_branches_where_there_are_some() -> None:
    chain = [*residual(3), Factor("mix", gaussian(6, 8, 50)), Factor("head", gaussian(5, 6, 51))]
    made = report(chain)
    rows = headline_interfaces(made.interfaces)
    assert rows[["index", "form"]].to_numpy().tolist() == [[0, BRANCH], [1, BRANCH], [2, BRANCH], [3, BLOCK]]
    kept = [
        row
        for _, row in made.interfaces.iterrows()
        if row["form"] == BRANCH or (made.interfaces["index"] == row["index"]).sum() == 1
    ]
    assert len(kept) == made.summary["interfaces"] == 4
    for name in ("energy_gain", "energy_gain_z", "slack_ratio", "slack_ratio_z", "angle_excess", "angle_excess_z"):
        assert made.summary[name] == pytest.approx(np.median([row[name] for row in kept]))
    assert made.summary["aligned_share"] == np.mean([row["energy_gain_percentile"] >= 97.5 for row in kept])
    for name in ("certified_share", "energy_certified_share"):
        assert made.summary[name] == pytest.approx(np.mean([row[f"physical_{name}"] for row in kept]))
    assert made.summary["strict_share"] == np.mean([row["physical_certified"] != "no" for row in kept])
    ranks = [
        max(
            row["physical_certified_rank_first"] / row["modes_first"],
            row["physical_certified_rank_second"] / row["modes_second"],
        )
        for row in kept
    ]
    assert made.summary["certified_rank"] == pytest.approx(np.median(ranks))


def test_depth_adds_up_neighbours_of_equal_rank() -> None:
    made = report(plain())  # the ranks are 9, 10, 10, 10
    a, summary = made.factors["exponent"], made.summary
    assert summary["drift"] == pytest.approx(abs(a[2] - a[1]) + abs(a[3] - a[2]))
    assert summary["displacement"] == pytest.approx(made.factors["chart_radial"].diff().abs().sum())
    logs = np.log(np.arange(1, 11))
    action = 0.0
    for one, two in ((a[1], a[2]), (a[2], a[3])):
        q = np.exp(-(one + two) / 2 * logs)
        q /= q.sum()
        action += (q @ logs**2 - (q @ logs) ** 2) * (two - one) ** 2
    assert summary["fisher_action"] == pytest.approx(action)
    p = [np.linalg.svd(factor.matrix.numpy(), compute_uv=False) ** 2 for factor in plain()]
    p = [each / each.sum() for each in p]
    kl = sum(float((p[i] * np.log(p[i] / p[i + 1])).sum()) for i in (1, 2))
    bures = sum(10 * float(((np.sqrt(p[i]) - np.sqrt(p[i + 1])) ** 2).sum()) for i in (1, 2))
    assert (summary["kl_action"], summary["bures_action"]) == (pytest.approx(kl), pytest.approx(bures))


def test_no_two_factors_of_equal_rank_have_no_drift() -> None:
    made = report([Factor("a", gaussian(6, 9, 0)), Factor("b", gaussian(5, 6, 1)), Factor("c", gaussian(4, 5, 2))])
    for name in ("drift", "fisher_action", "kl_action", "bures_action"):
        assert math.isnan(made.summary[name]), name
    assert math.isfinite(made.summary["displacement"])
    equal = report([Factor("a", power_law(6, 6, 1.0)), Factor("b", power_law(6, 6, 1.0, 5))])
    assert equal.summary["drift"] == pytest.approx(0, abs=1e-9)


def test_the_product_of_all_factors() -> None:
    """log s_1 and log ||.||_F against the product itself, and the null of the latter against dense rotations."""
    chain = plain()
    product = np.eye(9)
    for factor in chain:
        matrix = factor.matrix.numpy()
        product = matrix * math.sqrt(min(matrix.shape)) / np.linalg.norm(matrix) @ product
    summary = report(chain).summary
    assert summary["log_top"] == pytest.approx(math.log(np.linalg.norm(product, 2)))
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(1500):
        rotated = chain[0].matrix
        for factor in chain[1:]:
            q, r = torch.linalg.qr(torch.randn(len(rotated), len(rotated), dtype=torch.float64, generator=generator))
            rotated = factor.matrix @ (q * r.diagonal().sign()) @ rotated
        squares.append(float(rotated.norm()) ** 2)
    whole = chain[3].matrix @ chain[2].matrix @ chain[1].matrix @ chain[0].matrix
    assert summary["log_gain"] == pytest.approx(math.log(float(whole.norm())) - math.log(np.mean(squares)) / 2, abs=0.02)


def test_the_product_of_a_long_chain_neither_over_nor_underflows() -> None:
    turned = [orthogonal(3, 3, seed) for seed in range(12)]
    for scale in (1e-30, 1e30):
        summary = report([Factor(str(i), scale * q) for i, q in enumerate(turned)], QUICK._replace(seed=1)).summary
        assert summary["log_top"] == pytest.approx(0, abs=1e-9)
        assert summary["log_gain"] == pytest.approx(0, abs=1e-9)


def test_one_factor_has_no_interfaces() -> None:
    made = report(plain()[:1])
    assert made.interfaces.empty
    assert made.summary["factors"] == 1
    assert made.summary["log_top"] == pytest.approx(made.factors["radial"][0])
    assert made.summary["log_gain"] == pytest.approx(0)
    assert "energy_gain" not in made.summary

"""One chain's tables against the public functions applied by hand, and what they must satisfy."""

import math
from collections.abc import Iterator

import pandas as pd
import pytest
import torch

from gch_bench.config.diagnosis import AlignmentConfig, SpectralConfig
from gch_bench.geometry.analysis import analyse, weight_table
from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import PHYSICAL, PICTURE, SOURCE, ChainReport
from gch_bench.spectral import alignment, gibbs, labels, radial, transport

SHAPES = [(12, 9), (10, 12), (10, 10), (300, 10)]


def factors(seed: int = 0, group_size: int | None = None) -> Iterator[Factor]:
    generator = torch.Generator().manual_seed(seed)
    for i, shape in enumerate(SHAPES):
        yield Factor(f"block.{i}", torch.randn(shape, dtype=torch.float64, generator=generator), group_size)


def report(spectral: SpectralConfig | None = None, options: AlignmentConfig | None = None, **more) -> ChainReport:
    return analyse(factors(**more), "test", "a chain", spectral or SpectralConfig(), options or AlignmentConfig(groups=4))


def test_rows_equal_the_public_functions() -> None:
    made, parts = report(), [factor.matrix for factor in factors()]
    assert list(made.factors["name"]) == [f"block.{i}" for i in range(4)]
    for i, row in enumerate(made.factors.to_dict("records")):
        values = torch.linalg.svdvals(parts[i])
        fit, p = gibbs.fit_exponent(values), gibbs.energies(values)
        assert row["exponent"] == pytest.approx(fit.exponent, rel=1e-9)
        assert row["residual"] == pytest.approx(radial.radial_of_values(values).residual, abs=1e-9)
        assert row["rank_95"] == gibbs.effective_rank(p, 0.95)
        assert row["window_low"] <= row["chart_rank_95"] <= row["window_high"]
        own = made.spectra[made.spectra["index"] == i]
        torch.testing.assert_close(torch.tensor(own["value"].to_numpy()), values)
        assert own["energy"].sum() == pytest.approx(1)
    for i, row in enumerate(made.interfaces.to_dict("records")):
        between = radial.interface(parts[i], parts[i + 1])
        for name in ("amplitude", "slack", "bound", "displacement"):
            assert row[name] == pytest.approx(getattr(between, name), abs=1e-9)
        assert (row["dominant"], row["budget"]) == (between.dominant, pytest.approx(2 * between.amplitude))
        moved = transport.transport(parts[i], parts[i + 1], row["rank_first"], row["rank_second"])
        assert row["truncation_error"] == pytest.approx(moved.error)
        assert row["truncation_bound"] == pytest.approx(moved.bound)
        for form, matrix in ((PHYSICAL, moved.physical), (SOURCE, moved.source_mode)):
            shown = alignment.align(matrix, 4, row[f"{form}_tau"], row[f"{form}_omega"])
            assert row[f"{form}_radius"] == pytest.approx(shown.radius, abs=1e-12)
            assert row[f"{form}_limit"] == shown.limit
            how = "bound" if moved.bound < shown.radius else "measured" if moved.error < shown.radius else "no"
            assert row[f"{form}_certified"] == how
            assert row[f"{form}_missing"] == pytest.approx(max(moved.error - shown.radius, 0))
            assert sum(row[f"{form}_{part}_share"] for part in ("core", "overlap", "noise")) == pytest.approx(1)
            assert sum(row[f"{form}_{label}"] for label in labels.LABELS) == len(matrix)
            assert 0.05 <= row[f"{form}_active"] <= 0.25  # the automatic tau


def test_nothing_truncated_is_certified_and_every_label_kept() -> None:
    made = report(SpectralConfig(eta=1.0))
    assert (made.interfaces["truncation_error"] == 0).all()
    for form in (PHYSICAL, SOURCE):
        assert (made.interfaces[f"{form}_certified"] == "bound").all()
        assert (made.interfaces[f"{form}_missing"] == 0).all()
    assert made.summary["certified_share"] == 1.0
    counts = made.channels.groupby("index")["label"].count()
    assert list(counts) == [10, 10, 300]
    assert (made.interfaces["physical_stable_labels"] > 0).all()


def test_thresholds_in_the_units_that_the_options_name() -> None:
    made = report(options=AlignmentConfig(groups=5, density=0.2, edge_density=0.4, hub_degree=3, noise_budget=0.1))
    row = made.interfaces.iloc[0]
    first, second, *_ = factors()
    matrix = second.matrix @ first.matrix
    norms = alignment.block_norms(matrix, 5)
    assert row["physical_tau"] == pytest.approx(alignment.choose_tau(norms, 0.2))
    assert row["physical_omega"] == pytest.approx(alignment.choose_omega(norms, row["physical_tau"], 0.4))
    assert row["physical_hubs"] == int(((norms >= row["physical_tau"]).sum(0) >= 3).sum())
    assert row["physical_limit"] == "noise budget"
    assert row["physical_radius"] < 0


def test_group_size_of_a_chain_comes_before_the_number_of_groups() -> None:
    assert list(report(group_size=2).interfaces["physical_groups"]) == [5, 5, 150]
    with pytest.raises(ValueError, match=r"interface block\.0 -> block\.1: group_size must divide its 10 rows, got 3"):
        report(group_size=3)


def test_summary_adds_up_the_interfaces() -> None:
    made = report()
    changes = made.factors["exponent"].diff().abs()
    assert made.summary["drift"] == pytest.approx(changes[2] + changes[3])  # d is 9, 10, 10, 10
    assert made.summary["net_drift"] == pytest.approx(made.factors["exponent"].iloc[-1] - made.factors["exponent"].iloc[0])
    assert made.summary["amplification"] == pytest.approx(made.interfaces["budget"].sum())
    assert made.summary["displacement"] <= made.summary["bound"]
    assert made.summary["last_rank_90"] == made.factors["rank_90"].iloc[-1]


def test_columns_and_edges_say_which_sets_are_shared() -> None:
    made, (first, second, *_) = report(), factors()
    row = made.interfaces.iloc[0]
    shown = alignment.align(second.matrix @ first.matrix, 4, row["physical_tau"], row["physical_omega"])
    columns = made.columns[made.columns["index"] == 0]
    for j, column in enumerate(columns.to_dict("records")):
        assert column["supports"] == ",".join(str(g) for g in range(4) if shown.supports[g, j])
        assert (column["degree"], column["hub"]) == (int(shown.degree[j]), bool(shown.hubs[j]))
    edges = made.edges[made.edges["index"] == 0]
    assert {(edge["one"], edge["other"]) for edge in edges.to_dict("records")} == {
        (g, h) for g in range(4) for h in range(g + 1, 4) if shown.edges[g, h]
    }
    for edge in edges.to_dict("records"):
        both = [j for j, c in enumerate(columns["supports"]) if {str(edge["one"]), str(edge["other"])} <= set(c.split(","))]
        assert edge["shared"] == len(both)


def test_no_edge_leaves_a_table_with_its_columns() -> None:
    made = analyse(factors(), "test", "", SpectralConfig(), AlignmentConfig(groups=1))
    assert len(made.edges) == 0
    assert list(made.edges.columns) == list(report().edges.columns)


def test_pictures_stay_small() -> None:
    for picture in report().pictures:
        assert max(picture.energy.shape) <= PICTURE
    last = report().pictures[-1]
    assert last.energy.shape == (128, 10)
    assert bool((last.norms.amax(0).diff() <= 0).all())


def test_matrices_are_handed_over() -> None:
    kept: dict[int, dict] = {}
    analyse(factors(), "test", "", SpectralConfig(), AlignmentConfig(), kept.__setitem__)
    parts = [factor.matrix for factor in factors()]
    assert sorted(kept) == [0, 1, 2]
    torch.testing.assert_close(kept[1]["physical"], parts[2] @ parts[1])


@pytest.mark.parametrize("bad", [torch.zeros(10, 10), torch.full((10, 10), float("nan"))])
def test_a_factor_that_is_nothing_is_named(bad: torch.Tensor) -> None:
    chain = [*list(factors())[:2], Factor("broken", bad)]
    with pytest.raises(ValueError, match="factor broken: ") as caught:
        analyse(chain, "test", "", SpectralConfig(), AlignmentConfig())
    assert "\n" not in str(caught.value)


def test_factors_whose_product_is_zero() -> None:
    one, other = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="interface a -> b: the product of its factors is zero"):
        analyse([Factor("a", one), Factor("b", other)], "test", "", SpectralConfig(), AlignmentConfig())


def test_one_factor_has_no_interfaces() -> None:
    made = analyse(list(factors())[:1], "test", "", SpectralConfig(), AlignmentConfig())
    assert len(made.factors) == 1
    assert made.interfaces.empty
    assert made.summary["factors"] == 1


def test_weights_pool_their_taps() -> None:
    conv = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    taps = conv.flatten(2).permute(2, 0, 1)
    table = weight_table(iter([("conv", taps), ("dead", torch.zeros(1, 2, 2, dtype=torch.float64))]))
    values = torch.cat([torch.linalg.svdvals(conv[:, :, i, j]) for i in range(4) for j in range(5)])
    row = table.iloc[0]
    assert (row["taps"], row["size"]) == (20, 40)
    assert row["exponent"] == pytest.approx(gibbs.fit_exponent(values).exponent)
    assert row["norm"] == pytest.approx(float(torch.linalg.vector_norm(conv)))
    assert table.iloc[1]["norm"] == 0
    assert math.isnan(table.iloc[1]["exponent"])
    assert isinstance(table, pd.DataFrame)


def test_a_weight_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match=r"^layer\.weight must be finite, got 1 NaN or infinite values$"):
        weight_table([("layer", torch.tensor([[[math.inf, 1.0]]]))])


def test_tails_and_near_identity_of_factors() -> None:
    """Against sums over the spectrum, and against the exact radial coordinate of a factor that is nearly the identity."""
    torch.manual_seed(0)
    near = torch.eye(12, dtype=torch.float64) + 1e-3 * torch.randn(12, 12, dtype=torch.float64)
    wide = torch.randn(20, 12, dtype=torch.float64)
    chain = [Factor("near", near), Factor("wide", wide)]
    made = analyse(chain, "test", "", SpectralConfig(eta=0.5), AlignmentConfig(groups=2)).factors
    for row, matrix in zip(made.to_dict("records"), (near, wide), strict=True):
        energies = torch.linalg.svdvals(matrix).square()
        ranks = torch.arange(1, 13, dtype=torch.float64) ** -row["exponent"]
        window = int((ranks.cumsum(0) / ranks.sum() < 0.5).sum()) + 1
        assert row["tail_share"] == pytest.approx(float(energies[window:].sum() / energies.sum()), abs=1e-9)
        tail = float(ranks[window:].sum() / ranks.sum())
        assert tail <= row["chart_tail_bound"] <= 2 * tail
    first = made.iloc[0]
    assert first["near_identity_radial"] == pytest.approx(first["radial"], abs=2e-5)
    assert first["identity_distance"] == pytest.approx(
        float(torch.linalg.matrix_norm(near - torch.eye(12))) / 12**0.5, rel=1e-6
    )
    assert made.iloc[1][["identity_distance", "near_identity_radial"]].isna().all(), "only a square factor can be near it"

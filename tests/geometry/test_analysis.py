"""A chain's report as a whole: which rows there are, what is kept of each interface, and what is refused."""

import pandas as pd
import pytest
import torch
from geometry_chains import QUICK, gaussian, plain, report, residual
from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig, SpectralConfig
from gch_bench.geometry.analysis import TABLES, Options, analyse
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.factors import analysed, factor_row
from gch_bench.results.geometry import BLOCK, BRANCH, PHYSICAL, PICTURE, SOURCE, STATIC
from gch_bench.spectral import alignment
from gch_bench.spectral.certified_curve import ETAS
from gch_bench.spectral.gibbs import chart, effective_rank


def test_the_rows_of_every_table() -> None:
    made = report(plain())
    assert (made.chain, made.kind, made.description) == ("test", STATIC, "a chain")
    for name in TABLES:
        table = getattr(made, name)
        assert list(table.columns[:2]) == ["chain", "kind"], name
        assert set(table["chain"]) == {"test"}
    assert list(made.factors["name"]) == [f"block.{i}" for i in range(4)]
    assert list(made.interfaces["index"]) == [0, 1, 2]
    assert len(made.certificates) == 3 * 2 * len(ETAS)
    for i, factor in enumerate(plain()):
        row = factor_row(analysed(factor.name, factor.matrix, factor, 0.95), SpectralConfig())
        pd.testing.assert_frame_equal(made.factors[list(row)].iloc[[i]].reset_index(drop=True), pd.DataFrame([row]))
        own = made.spectra[made.spectra["index"] == i]
        torch.testing.assert_close(torch.tensor(own["value"].to_numpy()), torch.linalg.svdvals(factor.matrix))
        assert own["energy"].sum() == pytest.approx(1)
        assert own["energy_null"].sum() == pytest.approx(1)
        assert list(own["rank"]) == list(range(1, len(own) + 1))


def test_windows_are_those_of_the_charts_at_eta() -> None:
    for eta in (0.5, 0.9, 1.0):
        made = report(plain(), Options(SpectralConfig(eta=eta), QUICK.alignment))
        ranks = [effective_rank(chart(row["exponent"], row["numerical_rank"]), eta) for row in made.factors.to_dict("records")]
        assert list(made.interfaces["rank_first"]) == ranks[:-1]
        assert list(made.interfaces["rank_second"]) == ranks[1:]


def test_nothing_truncated_is_certified() -> None:
    made = report(plain(), Options(SpectralConfig(eta=1.0), QUICK.alignment))
    assert (made.interfaces["truncation_error"] == 0).all()
    for form in (PHYSICAL, SOURCE):
        assert (made.interfaces[f"{form}_certified"] == "bound").all()
        assert (made.interfaces[f"{form}_missing"] == 0).all()
    assert made.summary["certified_share"] == made.summary["strict_share"] == 1.0


def test_options_of_the_alignment_arrive() -> None:
    options = AlignmentConfig(groups=5, grouping="contiguous", density=0.2, edge_density=0.4, hub_degree=3, noise_budget=0.1)
    row = report(plain(), Options(alignment=options)).interfaces.iloc[0]
    first, second, *_ = plain()
    norms = alignment.block_norms(second.matrix @ first.matrix, 5)
    assert row["physical_tau"] == pytest.approx(alignment.choose_tau(norms, 0.2))
    assert row["physical_omega"] == pytest.approx(alignment.choose_omega(norms, row["physical_tau"], 0.4))
    assert row["physical_hubs"] == int(((norms >= row["physical_tau"]).sum(0) >= 3).sum())
    assert row["physical_limit"] == "noise budget"
    assert row["physical_radius"] < 0


def test_group_sizes_of_a_chain_come_before_the_options() -> None:
    assert list(report(plain(group_size=2)).interfaces["physical_groups"]) == [5, 5, 15]
    with pytest.raises(ValueError, match=r"^interface block\.0 -> block\.1: group_size must divide the 10 rows, got 3$"):
        report(plain(group_size=3))
    heads = [each._replace(read_group_size=2) for each in residual(2)]
    made = report(heads).interfaces.set_index("form")
    assert (made.loc[BLOCK, "physical_groups"], made.loc[BRANCH, "physical_groups"]) == (4, 8)  # of 8 rows; 16 rows in pairs
    assert (made.loc[BLOCK, "physical_grouping"], made.loc[BRANCH, "physical_grouping"]) == ("clusters", "given")


def test_pictures_stay_small() -> None:
    chain = [Factor("a", gaussian(8, 9, 0)), Factor("b", gaussian(300, 8, 1))]
    (picture,) = report(chain).pictures
    assert picture.energy.shape == (PICTURE, 9)
    assert (picture.interface, picture.form, picture.matrix, picture.title) == (0, BLOCK, PHYSICAL, "a -> b")
    forms = [(each.interface, each.form) for each in report(residual(2)).pictures]
    assert forms == [(0, BLOCK), (0, BRANCH)]


def test_matrices_are_handed_over() -> None:
    kept: dict[tuple[int, str], dict[str, Tensor]] = {}
    chain = residual(3)
    analyse(chain, "test", "", QUICK, lambda index, form, matrices: kept.update({(index, form): matrices}))
    assert sorted(kept) == [(0, BLOCK), (0, BRANCH), (1, BLOCK), (1, BRANCH)]
    torch.testing.assert_close(kept[1, BLOCK]["physical"], chain[2].matrix @ chain[1].matrix)
    read, write = chain[2].read, chain[1].write
    assert read is not None
    assert write is not None
    torch.testing.assert_close(kept[1, BRANCH]["physical"], read @ write)
    matrices = kept[1, BRANCH]
    norms = alignment.block_norms(matrices["physical"], matrices["group"].tolist())
    torch.testing.assert_close(matrices["norms"], norms)
    assert matrices["certified_blocks"].shape == norms.shape


def test_factors_are_read_one_after_the_other() -> None:
    """A factor is asked for only when those before it are done, so that a chain need not be in memory."""
    seen: list[str] = []

    def factors():
        for factor in plain():
            seen.append(f"made {factor.name}")
            yield factor

    analyse(factors(), "test", "", QUICK, lambda index, form, matrices: seen.append(f"interface {index}"))
    assert seen[:4] == ["made block.0", "made block.1", "interface 0", "made block.2"]


@pytest.mark.parametrize("bad", [torch.zeros(10, 10), torch.full((10, 10), float("nan"))])
def test_a_factor_that_is_nothing_is_named(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^factor broken: [^\n]*$"):
        report([*plain()[:2], Factor("broken", bad)])


def test_factors_that_do_not_compose_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^second must take what first gives: [^\n]*$"):
        report([Factor("a", gaussian(3, 4, 0)), Factor("b", gaussian(3, 4, 1))])


def test_a_chain_without_factors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^chain test must have at least one factor, got none$"):
        report([])

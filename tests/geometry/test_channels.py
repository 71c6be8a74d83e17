"""The rows of static channels against the public functions applied by hand, both forms, all groupings."""

import math
import time

import pytest
import torch
from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig
from gch_bench.errors import FieldError
from gch_bench.geometry.channels import ChannelRow, ChannelsPair, channels_of, rotated_share
from gch_bench.results.geometry import PHYSICAL, SOURCE
from gch_bench.spectral import alignment, error_blocks, group_nulls, groups, labels
from gch_bench.spectral.certificates import model_share
from gch_bench.spectral.certified_curve import ETAS
from gch_bench.spectral.linalg import decompose
from gch_bench.spectral.transport import Transport, transport_of


def power_law(rows: int, columns: int, exponent: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(side, count, dtype=torch.float64, generator=generator)).Q for side in (rows, columns)
    )
    return (left * torch.arange(1, count + 1).double() ** (-exponent / 2)) @ right.mT


def interface(windows: tuple[int, int] = (20, 24), options: AlignmentConfig | None = None, group_size: int | None = None):
    parts = decompose(power_law(40, 30, 2.0, 0)), decompose(power_law(48, 40, 2.0, 1))
    moved = transport_of(*parts, *windows)
    return parts, moved, channels_of(*parts, moved, options or AlignmentConfig(groups=4), group_size)


def forms(moved: Transport, made: ChannelsPair):
    """(channels, full, truncated) of either form."""
    yield made.physical, moved.physical, moved.physical_truncated
    yield made.source_mode, moved.source_mode, moved.source_mode_truncated


COLUMNS = """groups grouping tau omega radius limit certified missing core_share overlap_share noise_share overlap_share_low
overlap_share_high active edges hubs SC SA ST certified_share energy_certified_share apriori_certified_share edges_certified
hubs_certified labels_certified margin_01 margin_05 margin_50 jaccard agreement certified_rank_first certified_rank_second
certified_eta tau_low_share tau_high_share model_share"""


def test_forms_and_columns_are_those_of_the_tables() -> None:
    assert ChannelsPair._fields == (PHYSICAL, SOURCE)
    assert set(ChannelRow._fields) == {*COLUMNS.split(), "masks_certified", "overlap_share_reclustered"}


@pytest.mark.parametrize("grouping", ["clusters", "contiguous"])
def test_rows_equal_the_public_functions(grouping: str) -> None:
    options = AlignmentConfig(groups=4, grouping=grouping, density=0.2, edge_density=0.4, hub_degree=3, kappa=1.5)
    parts, moved, pair = interface(options=options)
    pairs = error_blocks.GroupPair(pair.physical.alignment.group, pair.source_mode.alignment.group)
    apriori = error_blocks.apriori_error_blocks(*parts, moved, pairs)
    for (made, full, cut), bounds in zip(forms(moved, pair), apriori, strict=True):
        row, group = made.row, groups.cluster_rows(full, 4) if grouping == "clusters" else groups.row_groups(4, 48)
        assert torch.equal(made.alignment.group, group)
        assert (row.groups, row.grouping) == (4, grouping)
        norms, cut_norms = alignment.block_norms(full, group), alignment.block_norms(cut, group)
        assert row.tau == alignment.choose_tau(norms, 0.2)
        assert row.omega == alignment.choose_omega(norms, row.tau, 0.4)
        shown = alignment.align(full, group, row.tau, row.omega, 3)
        energy = float(full.norm()) ** 2
        assert (row.radius, row.limit) == (pytest.approx(shown.radius, abs=1e-15), shown.limit)
        assert row.core_share == pytest.approx(shown.core**2 / energy)
        assert row.overlap_share == pytest.approx(shown.overlapping**2 / energy)
        assert row.noise_share == pytest.approx(shown.noise**2 / energy)
        assert (row.edges, row.hubs) == (int(shown.edges.sum()) // 2, int(shown.hubs.sum()))
        assert row.active == pytest.approx(0.2, abs=0.02)
        measured = alignment.block_norms(full - cut, group)
        certain = alignment.certify(full, measured, group, row.tau, row.omega, 3)
        shares = (certain.certified_share, certain.energy_share, certain.edges_share, certain.hubs_share, certain.masks_share)
        got = (row.certified_share, row.energy_certified_share, row.edges_certified, row.hubs_certified, row.masks_certified)
        assert got == pytest.approx(shares)
        assert (row.margin_01, row.margin_05, row.margin_50) == pytest.approx(certain.margins)
        assert row.apriori_certified_share == alignment.certify(full, bounds, group, *shown.thresholds).certified_share
        assert row.apriori_certified_share <= row.certified_share
        for part, share in ((0.9, row.tau_low_share), (1.1, row.tau_high_share)):
            at = alignment.certify(full, measured, group, part * row.tau, row.omega)
            assert share == pytest.approx(at.certified_share)
        assert row.model_share == pytest.approx(model_share(norms, measured, group.bincount(), row.tau))
        one, two = norms >= row.tau, cut_norms >= row.tau
        assert row.jaccard == pytest.approx(int((one & two).sum()) / int((one | two).sum()))
        assert row.agreement == pytest.approx(float((one == two).double().mean()))
        low, high = group_nulls.overlap_share_range(full, group, 0.2)
        assert (row.overlap_share_low, row.overlap_share_high) == pytest.approx((low, high))
        again = group_nulls.reclustered_share(full, 4, 0.2).overlap if grouping == "clusters" else math.nan
        assert row.overlap_share_reclustered == pytest.approx(again, nan_ok=True)
        found = labels.channel_labels(full, shown, 1.5).label
        assert [int((found == kind).sum()) for kind in range(3)] == [row.SC, row.SA, row.ST]
        assert row.labels_certified == pytest.approx(float((made.certain_labels != labels.NO_LABEL).double().mean()))


def test_what_is_certified_is_what_the_truncated_transport_shows() -> None:
    """The whole way from two factors: blocks, masks, edges, hubs and labels of the truncated matrices themselves."""
    for windows in ((5, 5), (20, 24), (28, 38)):
        _, moved, pair = interface(windows)
        for made, _, cut in forms(moved, pair):
            after = alignment.align(cut, made.alignment.group, *made.alignment.thresholds)
            certain, known = made.certificate, made.certain_labels
            for values, truths in ((certain.blocks, after.supports), (certain.edges, after.edges), (certain.hubs, after.hubs)):
                assert bool(((values == 0) | (values == torch.where(truths, 1, -1))).all())
            assert bool(((certain.masks == -1) | (certain.masks == after.block_masks)).all())
            assert bool(((known == labels.NO_LABEL) | (known == labels.channel_labels(cut, after).label)).all())
            assert made.row.agreement >= made.row.certified_share
            assert (made.row.certified == "no") == (moved.error >= made.row.radius)


def test_nothing_truncated_is_certified_entirely() -> None:
    _, moved, pair = interface((30, 40))
    for made, _, _ in forms(moved, pair):
        row = made.row
        assert row.certified_share == row.energy_certified_share == row.hubs_certified == row.edges_certified == 1
        assert row.jaccard == row.agreement == 1
        assert row.missing == 0
        assert row.certified != "no"
        assert row.labels_certified > 0.95


def test_curve_and_certified_rank() -> None:
    _, moved, pair = interface()
    for made, _, _ in forms(moved, pair):
        assert [point.eta for point in made.curve] == list(ETAS)
        first = next(i for i in range(len(ETAS)) if all(point.certified_share >= 0.95 for point in made.curve[i:]))
        at = made.curve[first]
        ranks = (made.row.certified_eta, made.row.certified_rank_first, made.row.certified_rank_second)
        assert ranks == (at.eta, at.rank_first, at.rank_second)


def test_group_size_of_a_chain_comes_before_the_options() -> None:
    _, _, pair = interface(group_size=12)
    for made in pair:
        assert (made.row.groups, made.row.grouping) == (4, "given")
        assert made.alignment.group.tolist() == [i // 12 for i in range(48)]
        assert math.isnan(made.row.overlap_share_reclustered)
    for size in (5, 0, 96):
        with pytest.raises(ValueError, match=rf"^group_size must divide the 48 rows, got {size}$"):
            interface(group_size=size)


def test_small_interfaces() -> None:
    """One row, one column, fewer rows than groups; nothing to decide is nan, and all else is a number."""
    for shapes in (((1, 1), (1, 1)), ((3, 1), (1, 3)), ((2, 5), (3, 2)), ((4, 4), (20, 4))):
        parts = [decompose(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
        assert 0 <= rotated_share(*parts, AlignmentConfig()) <= 1
        for made in channels_of(*parts, transport_of(*parts, 1, 1), AlignmentConfig()):
            row = made.row
            assert row.groups == min(8, shapes[1][0])
            unknown = {name for name, value in row._asdict().items() if isinstance(value, float) and math.isnan(value)}
            assert unknown == ({"edges_certified"} if row.groups == 1 else set())


def test_the_certified_share_of_a_rotated_interface() -> None:
    """Against curves of explicitly rotated factors."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator)).Q
    weights = torch.arange(1, 61, dtype=torch.float64) ** -1.0
    blocks = torch.block_diag(*[torch.ones(10, 10, dtype=torch.float64)] * 6)
    parts = decompose(basis * weights), decompose((blocks + 0.1 * basis) @ (basis * weights).mT)
    # An independent computation, with another rotation of the same law.
    shares = []
    for _ in range(5):
        rotation = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator)).Q
        turned = decompose(parts[1].matrix @ rotation)
        pair = channels_of(parts[0], turned, transport_of(parts[0], turned, 20, 20), AlignmentConfig(groups=6))
        shares.append(next(point.certified_share for point in pair.physical.curve if point.eta == 0.95))
    assert rotated_share(*parts, AlignmentConfig(groups=6)) == pytest.approx(sum(shares) / 5, abs=0.15)


def test_a_product_of_zero_is_refused() -> None:
    parts = decompose(torch.diag(torch.tensor([1.0, 0.0]))), decompose(torch.diag(torch.tensor([0.0, 1.0])))
    with pytest.raises(ValueError, match=r"^the product of its factors is zero, it carries nothing$"):
        channels_of(*parts, transport_of(*parts, 1, 1), AlignmentConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be >= 1, got 0"),
        ({"grouping": "heads"}, "grouping must be one of clusters, contiguous, got 'heads'"),
        ({"density": 1.0}, r"density must be in \(0, 1\), got 1.0"),
        ({"edge_density": 0.0}, r"edge_density must be in \(0, 1\), got 0.0"),
        ({"kappa": 0.0}, r"kappa must be > 0, got 0\.0"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        AlignmentConfig(**options)


def test_cost_is_a_few_products() -> None:
    """About 9 products of the factors' size at 2048 x 2048, more in proportion for small ones; far more would be a mistake."""
    parts = decompose(power_law(512, 512, 1.0, 0)), decompose(power_law(512, 512, 1.0, 1))
    moved = transport_of(*parts, 300, 300)
    channels_of(*parts, moved, AlignmentConfig())  # imports and warms up
    start = time.process_time()
    channels_of(*parts, moved, AlignmentConfig())
    assert time.process_time() - start < 5

"""Stored suites: their own names, their own means; and images with several labels."""

import numpy as np
import pandas as pd
import pytest
from conftest import configuration

from gch_bench.corruptions import CORRUPTIONS
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import wanted_cells
from gch_bench.metrics import EXTRA, averaged, sample_atoms, scored_labels
from gch_bench.results.records import CELL_CLEAN
from gch_bench.results.summary import means
from gch_bench.suites import SUITES, suite_of

LOGP = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]))


def test_names_belong_to_one_suite_and_to_no_other_table() -> None:
    names = [name for suite in SUITES.values() for name in suite]
    assert len(set(names)) == len(names) == 22
    assert not set(names) & set(CORRUPTIONS)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_evaluates_its_names_at_five_severities(suite: str) -> None:
    config = configuration(f"corruptions={suite}", "corruptions.root=/c").corruptions
    assert wanted_cells(config) == [CELL_CLEAN, *((name, s) for name in SUITES[suite] for s in range(1, 6))]
    one = SUITES[suite][3]
    some = configuration(f"corruptions={suite}", "corruptions.root=/c", f"corruptions.names=[{one}]").corruptions
    assert {name for name, _ in wanted_cells(some)[1:]} == {one}
    with pytest.raises(UserError, match=f"unknown corruption 'fog' of {suite}: choose from {SUITES[suite][0]}"):
        wanted_cells(configuration(f"corruptions={suite}", "corruptions.root=/c", "corruptions.names=[fog]").corruptions)
    with pytest.raises(UserError, match=f"is one of stored images: choose corruptions={suite}"):
        wanted_cells(configuration("corruptions.root=/c", f"corruptions.names=[{one}]").corruptions)
    with pytest.raises(UserError, match=r"corruptions.root must be the folder"):
        configuration(f"corruptions={suite}")


def test_a_suite_and_a_subset_are_part_of_the_identity() -> None:
    subset = "corruptions.subset=9"
    choices = ([], ["corruptions=imagenet_c_bar"], [subset], [subset, "corruptions.subset_seed=1"])
    assert len({str(configuration("corruptions.root=/c", *more).identity) for more in choices}) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corruptions.subset=0", "corruptions.subset must be a whole number >= 1, got 0"),
        ("corruptions.subset_seed=1", "corruptions.subset_seed is for a subset: give corruptions.subset=NUMBER"),
        ("corruptions.suite=imagenet_d", "corruptions.suite must be one of imagenet_c_bar, imagenet_3dcc, got 'imagenet_d'"),
    ],
)
def test_choices_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        configuration(override)
    assert message in str(caught.value)


def test_means_are_over_one_kind_alone() -> None:
    assert averaged(["clean", "fog", "sparkles", "saturate", "flash", "snow"]) == ["fog", "snow"]
    assert averaged(["clean", "saturate", "sparkles", "plasma_noise", "flash"]) == ["sparkles", "plasma_noise"]
    assert averaged(["flash", "low_light"]) == ["flash", "low_light"]
    assert averaged(["clean", *EXTRA]) == list(EXTRA)
    assert suite_of("fog") is None


def test_mce_is_not_defined_for_a_suite() -> None:
    atoms = dict.fromkeys(("top1", "nll", "ece"), 0.5)
    names = SUITES["imagenet_c_bar"]
    rows = [{"corruption": "clean", "severity": 0, **atoms}]
    rows += [{"corruption": name, "severity": s, **atoms, "top1": s / 10} for name in names for s in range(1, 6)]
    table = means(pd.DataFrame(rows), imagenet_1k=True).set_index("corruption")
    assert table.loc["mean", "top1"] == pytest.approx(0.3)
    assert table[["ce", "relative_ce"]].isna().all(axis=None)


def test_the_most_probable_of_several_labels_is_scored() -> None:
    assert scored_labels(LOGP, [(0, 2), (3,), (3, 1)]).tolist() == [2, 3, 1]
    with pytest.raises(ValueError, match="at least one each, got"):
        scored_labels(LOGP, [(0,), (), (1,)])
    with pytest.raises(ValueError, match=r"classes in 0\.\.3"):
        scored_labels(LOGP, [(0,), (4,), (1,)])
    with pytest.raises(ValueError, match="a row per label set"):
        scored_labels(LOGP, [(0,)])


def test_top1_of_scored_labels_is_multi_label_accuracy() -> None:
    """Compared with its definition: the share of images whose most probable class is among their labels, and top-5 likewise."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 20))
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    sets = [tuple(random.choice(20, random.integers(1, 5), replace=False).tolist()) for _ in range(400)]
    labels = scored_labels(logp, sets)
    atoms = sample_atoms(logp, labels)
    order = np.argsort(-logits, axis=1)
    expected = [order[i, 0] in sets[i] for i in range(400)]
    assert (atoms.prediction == labels).tolist() == expected
    assert atoms.top5.tolist() == [bool(set(order[i, :5].tolist()) & set(sets[i])) for i in range(400)]

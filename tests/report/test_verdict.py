"""The verdict's words follow the table of results."""

import pandas as pd
import pytest
from reports import DROPBLOCK, GCH, NONE, make_report, make_setting

from gch_bench.report.study import CALIBRATED, RAW, Setting
from gch_bench.report.verdict import verdict


def nll(rows: pd.DataFrame, mechanism: str, temperature: str) -> pd.Series:
    return (
        (rows["mechanism"] == mechanism) & (rows["metric"] == "nll") & (rows["corruption"] == "mean")
        & (rows["temperature"] == temperature)
    )  # fmt: skip


def sentence(setting: Setting, rows: pd.DataFrame, mechanism: str) -> str:
    (found,) = [text for text in verdict([setting], rows) if text.startswith(mechanism)]
    return found


def test_the_best_comes_first_and_is_said_with_its_interval() -> None:
    report = make_report(make_setting([NONE, GCH, DROPBLOCK]))
    first, second, third, *limits = verdict(report.settings, report.rows)
    assert "of 2 mechanisms compared with none, 1 has a lower mean corrupted NLL, 0 a higher one, and 1 cannot be told" in first
    assert second.startswith(f"{GCH.label} lowers mean corrupted NLL by 0.0200 [0.0020, 0.0380] against none over ")
    assert third.startswith(f"{DROPBLOCK.label} changes mean corrupted NLL by +0.0100 [-0.0010, +0.0210]")
    assert "not distinguishable from 0" in third
    assert all(text.startswith(report.settings[0].name) for text in limits)


@pytest.mark.parametrize(
    ("difference", "p", "words"),
    [(-0.02, 0.001, "it still wins, so this is not only a temperature"), (0.02, 0.001, "it loses"),
     (-0.001, 0.6, "no longer distinguishable from 0, so a temperature may do as much")],
)  # fmt: skip
def test_temperature(difference: float, p: float, words: str) -> None:
    report = make_report(make_setting([NONE, GCH], logits=True))
    rows = report.rows.copy()
    rows.loc[nll(rows, GCH.label, CALIBRATED), ["difference", "p_holm"]] = [difference, p]
    text = sentence(report.settings[0], rows, GCH.label)
    assert words in text
    assert f"], p = {p:.3f} after Holm: " in text, "of the difference after temperature scaling"
    wins = 1 if difference < 0 and p < 0.05 else 0
    assert f"after temperature scaling of both, {wins} of 1 ha" in verdict(report.settings, rows)[0]
    rows.loc[rows["temperature"] == CALIBRATED, "difference"] = float("nan")
    assert verdict(report.settings, rows)[0].endswith("; no temperature could be fitted both to one of them and to none.")


def test_many_that_are_not_distinguishable_share_a_sentence() -> None:
    others = [DROPBLOCK._replace(label=f"dropblock p=0.{number} L4", p=0.2 + 0.1 * number) for number in range(5)]
    report = make_report(make_setting([NONE, GCH, *others], logits=True))
    rows = report.rows.copy()
    setting = report.settings[0]
    _, first, shared, *limits = verdict(report.settings, rows)
    assert first.startswith(f"{GCH.label} lowers")
    assert shared.startswith(
        "5 mechanisms cannot be told apart from none in mean corrupted NLL, raw or after temperature scaling"
    )
    assert all(f"{each.label} +0.0100 [-0.0010, +0.0210]" in shared for each in others)
    assert all(text.startswith(setting.name) for text in limits)
    rows.loc[nll(rows, others[0].label, CALIBRATED), "p_holm"] = 0.01
    texts = verdict(report.settings, rows)
    assert any(text.startswith(f"{others[0].label} changes") and text.endswith("it loses.") for text in texts), "after T it is"
    assert any(text.startswith("4 mechanisms cannot be told apart") for text in texts)


def test_without_logits_or_with_one_seed_the_limits_say_so() -> None:
    report = make_report(make_setting([NONE, GCH], logits=False, seeds=1))
    text = " ".join(verdict(report.settings, report.rows))
    assert "whether a temperature would do as much as a mechanism is unknown" in text
    assert "one seed, so the intervals are about the draw of the images alone" in text


def test_a_worse_mechanism_and_no_baseline() -> None:
    report = make_report(make_setting([NONE, GCH]))
    rows = report.rows.copy()
    rows.loc[nll(rows, GCH.label, RAW), ["difference", "low", "high"]] = [0.02, 0.01, 0.03]
    said = sentence(report.settings[0], rows, GCH.label)
    assert f"{GCH.label} raises mean corrupted NLL by 0.0200 [0.0100, 0.0300]" in said
    assert "sign-flip" not in said, "that test is for a lower NLL"
    alone = report.settings[0]._replace(baseline=None)
    (only,) = verdict([alone], rows)
    assert "no mechanism was compared with another" in only

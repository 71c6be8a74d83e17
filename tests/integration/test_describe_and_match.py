"""diagnose.py mode=describe and mode=match: what they print, that it can be pasted into train.py, and what they refuse."""

import re
import shlex
from collections.abc import Callable

import pytest
from conftest import REPOSITORY, configuration, one_line
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import argument, diagnosis_config, reported
from gch_bench.apps.diagnosis.modes import MODES
from gch_bench.noise.strength import realised
from gch_bench.noise.table import make_mechanism

MAP = "grid=[7,7]"


def run(*overrides: str) -> None:
    """What diagnose.py does with these arguments; the configuration stays open, as in hydra.main."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        given = [argument(text, noise_list=True) for text in overrides]
        config = diagnosis_config(compose("diagnose", overrides=given))
        MODES[config.mode](config)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*overrides: str) -> str:
        with pytest.raises(SystemExit) as stopped, reported():
            run(*overrides)
        return one_line(stopped.value, capsys)

    return call


def test_describe_as_typed(cli) -> None:
    """The map is that of the network's stage; two mechanisms, one after the other."""
    done = cli("diagnose.py", "mode=describe", "noise=[gch,dropout]", "stages=[L3]", "size=64")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "map: 4x4, stage L3 (layer3) of resnet18 at 64x64 pixels" in done.stdout
    assert re.search(r"D1  least additional information.*exactly", done.stdout)
    assert re.search(r"D1  least additional information.*not applicable", done.stdout)
    assert re.search(r"energy +│ +8 ", done.stdout), "16 sites at beta = 1"
    assert re.search(r"white +│ +0.06380 ", done.stdout), "the entropy gap of docs/theory.md"


def test_describe_on_a_given_map(capsys: pytest.CaptureFixture[str]) -> None:
    run("mode=describe", "noise=gch", "noise.beta=2", MAP)
    text = capsys.readouterr().out
    assert "map: 7x7, as given by grid" in text
    assert re.search(r"energy +│ +12.25 ", text)


def test_matched_lines_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    """Each printed line, composed as for train.py, has the gate variance that it states."""
    entries = "dropout,dropblock,gaussian_dropout,hard_mask,dropkey,additive_green,{name: gch, boundary: inside, stages: [L3]}"
    run("mode=match", f"noise=[{entries}]", "reference=gch", MAP)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "dropkey" in line] == [
        "# noise=dropkey: gate variance not applicable: noise inside an attention has no gate on a map, reference gch 0.3903"
    ]
    pasted = [line for line in lines if not line.startswith("#")]
    assert len(pasted) == 6
    for line in pasted:
        overrides, _, comment = line.partition("   # ")
        stated = re.fullmatch(r"gate variance (\d\.\d{4}), reference gch 0\.3903", comment)
        assert stated, line
        noise = configuration(*shlex.split(overrides)).noise
        found = realised(make_mechanism(noise.law or "", noise.kernel, noise.options, noise.injection), 7, 7)
        assert found.gate_variance == pytest.approx(float(stated[1]), rel=0.02)
        assert found.gate_variance == pytest.approx(0.3903, rel=0.04)
    last = configuration(*shlex.split(pasted[-1].partition("   # ")[0])).noise
    assert (last.name, last.boundary, last.stages) == ("gch", "inside", ["L3"])


def test_match_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    run("mode=match", "noise=[gch_wick,dropout]", "reference=0.25", "quantity=log_variance", "grid=[1,1]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "noise=gch_wick noise.gamma=1.0   # log variance 0.2500, reference 0.25",
        "# noise=dropout: log variance not applicable: its gate is not always positive, reference 0.25",
    ]


def test_match_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    run("mode=match", "noise=dropblock", "reference=50", MAP)
    assert "# noise=dropblock: gate variance reaches at most 4.351, with p = 0.9999, reference 50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=describe"], "noise=none has no law that mode=describe could look at: give a mechanism such as noise=gch"),
        (["mode=match", "noise=[gch,none]", MAP], "noise=none has no law that mode=match could look at"),
        (["noise=[gch,dropout]"], "noise=[gch,dropout] goes with mode=describe, match or compatibility, not with mode"),
        (["mode=match", "noise=gch", "reference=none", MAP], "reference must be a mechanism such as gch, or a number > 0, got"),
        (["mode=match", "noise=gch", "reference=nothing", MAP], "unknown noise 'nothing': choose one of additive, "),
        (["mode=match", "noise=gch", "reference=-1", MAP], "reference must be a mechanism such as gch, or a finite number > 0"),
        (["mode=match", "noise=gch", "reference=dropkey", MAP], "reference=dropkey has no quantity=gate_variance: noise"),
        (["mode=describe", "noise=gch", "noise.gamma=-1", MAP], "noise.gamma must be a finite number >= 0, got -1"),
        (["mode=describe", "noise=gch_inside", "grid=[2,5]"],
         'noise=gch_inside on a 2x5 map: boundary="inside" needs a map of at least 3x3, got 2x5'),
        (["mode=match", "noise=gch_inside", "grid=[2,5]", "reference=0.3"], 'boundary="inside" needs a map of at least 3x3'),
        (["mode=describe", "noise=gch", "stages=[L9]", "size=32"], "stages=['L9']: unknown stage 'L9' of ResNet: choose one"),
        (["mode=describe", "noise=gch", "grid=[7]"], "grid must be [HEIGHT,WIDTH], each >= 1, or null, got [7]"),
    ],
)  # fmt: skip
def test_refusals(refused, overrides: list[str], message: str) -> None:
    assert message in refused(*overrides)

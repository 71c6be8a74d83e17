"""evaluate.py on several networks, end to end: real weights on some of ImageNet's classes, and several processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
import torch
from conftest import TINY, configuration, needs_lite
from PIL import Image
from tinynet import tinynet

from gch_bench.apps.report import build
from gch_bench.apps.run import train_and_evaluate
from gch_bench.config.report import ReportConfig
from gch_bench.config.run import LoggerConfig
from gch_bench.display import Display
from gch_bench.results.records import CELL_CLEAN, CELL_CLEAN_TIMM, Cell, read_record, record_facts
from gch_bench.results.runfacts import RunFile
from gch_bench.results.summary import logged_metrics

CLASSES = ("n01498041", "n01531178", "n01534433")  # the first of ImageNet-A's
QUICK = ("corruptions.names=[contrast]", "corruptions.severities=[2]", "logger=none", "threads=1", "data.workers=0")


@pytest.fixture
def some_classes(tmp_path: Path) -> Path:
    photographs = (skimage.data.coffee(), skimage.data.chelsea(), skimage.data.astronaut())
    for number, name in enumerate(CLASSES):
        (tmp_path / "imagenet-a" / name).mkdir(parents=True)
        for i, photograph in enumerate(photographs[: number + 1]):
            Image.fromarray(photograph).resize((90, 80)).save(tmp_path / "imagenet-a" / name / f"{i}.jpg")
    return tmp_path / "imagenet-a"


@needs_lite
def test_real_weights_on_some_of_imagenets_classes(
    some_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the data's classes compete, and the clean images are also scored in the preparation that timm validates with."""
    options = (
        "data=imagenet_a", f"data.root={some_classes}", "data.num_classes=3", "data.size=64", "data.resize=72",
        "checkpoints=[timm:tf_efficientnet_lite0]", f"output={tmp_path / 'out'}", *QUICK,
    )  # fmt: skip
    train_and_evaluate(configuration(*options, name="evaluate"))
    folder = tmp_path / "out" / "timm-tf_efficientnet_lite0"
    rows = {cell: read_record(folder, cell) for cell in (CELL_CLEAN, CELL_CLEAN_TIMM, Cell("contrast", 2))}
    assert all(table["label"].tolist() == [0, 1, 1, 2, 2, 2] for table in rows.values())
    assert all(table["prediction"].isin([0, 1, 2]).all() for table in rows.values())
    assert not rows[CELL_CLEAN]["nll"].equals(rows[CELL_CLEAN_TIMM]["nll"])
    assert pd.read_csv(folder / "means.csv")["corruption"].tolist() == ["clean", "contrast", "mean"]
    facts = record_facts(folder, CELL_CLEAN_TIMM)
    assert facts is not None
    assert facts["preparation"] == "timm-center-crop0.875-bicubic-224"
    shown = " ".join(capsys.readouterr().out.split())
    own, timms = (rows[cell]["nll"].astype(float).mean() for cell in (CELL_CLEAN, CELL_CLEAN_TIMM))
    assert "timm validates this network with another preparation" in shown
    assert f"NLL {timms - own:+.4f} [" in shown
    logged = logged_metrics(pd.read_csv(folder / "summary.csv"), imagenet_1k=False)
    assert {name.split("/")[0] for name in logged} == {"clean", "clean_timm", "shift"}
    report = build(ReportConfig(LoggerConfig("none"), [str(folder)], resamples=100), Display(main=True))
    assert not any("has no record" in line for line in report.refused)
    assert "clean_timm" not in set(report.rows["corruption"])
    train_and_evaluate(configuration(*options, name="evaluate"))
    assert "nothing left to do" in capsys.readouterr().out


@needs_lite
def test_timms_preparation_by_name(some_classes: Path, tmp_path: Path) -> None:
    options = (
        "data=imagenet_a", f"data.root={some_classes}", "data.num_classes=3", "data.preprocess=timm",
        "checkpoints=[timm:tf_efficientnet_lite0]", f"output={tmp_path / 'out'}", *QUICK, "corruptions.names=[]",
        "corruptions.severities=[]", "corruptions=none",
    )  # fmt: skip
    train_and_evaluate(configuration(*options, name="evaluate"))
    facts = json.loads((tmp_path / "out" / "timm-tf_efficientnet_lite0" / "run.json").read_text())
    assert facts["protocol"]["geometry"] == "timm-center-crop0.875-bicubic-224"
    assert facts["protocol"]["size"] == 224
    assert not (tmp_path / "out" / "timm-tf_efficientnet_lite0" / "records" / CELL_CLEAN_TIMM.file_name).exists()


def test_a_root_that_disappears_is_never_skipped(some_classes: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Files that are gone are no broken images, so data.skip_bad=true does not turn the rest into a result."""
    weights = tmp_path / "weights.pt"
    torch.save(tinynet(1000).state_dict(), weights)
    gone = some_classes / CLASSES[2]
    options = (
        *TINY, "data=imagenet_a", f"data.root={some_classes}", "data.num_classes=3", "data.size=64", "data.resize=72",
        f"model.checkpoint={weights}", "evaluation.batch_size=2", "data.skip_bad=true", *QUICK, f"output={tmp_path / 'out'}",
    )  # fmt: skip

    def remove(*arguments: object) -> None:
        shutil.rmtree(gone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFile, "begin", lambda self, before=RunFile.begin, **facts: (before(self, **facts), remove())[0])
        line = refused(*options, name="evaluate")
    assert "is listed but cannot be read (No such file or directory)" in line
    assert not list((tmp_path / "out" / "records").glob("*.parquet"))


def test_a_subset_larger_than_the_data_stops_before_the_start(tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused(*TINY, "corruptions.subset=361", f"output={tmp_path / 'out'}")
    assert "corruptions.subset must be at most the number of evaluated images, 360, got 361" in line
    assert not (tmp_path / "out").exists()


def test_several_processes_make_the_same_files(tmp_path: Path, cli: Callable) -> None:
    """301 images in batches of 50 are not divisible by three processes. With noise at test time, logits and a subset."""
    train_and_evaluate(configuration(*TINY, "corruptions=none", "noise=gch", f"output={tmp_path / 'run'}"))
    options = (
        *TINY, f"checkpoints=[{tmp_path / 'run'}]", *QUICK[:2], "evaluation.batch_size=50", "noise.eval=true",
        "noise.mc_samples=3", "records.logits=true", "corruptions.subset=301",
    )  # fmt: skip
    train_and_evaluate(configuration(*options, f"output={tmp_path / 'one'}", name="evaluate"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3")
    done = cli("evaluate.py", *options, f"output={tmp_path / 'many'}", launcher=launcher)
    assert done.returncode == 0, done.stderr
    for cell in (CELL_CLEAN, Cell("contrast", 2)):
        first, second = (tmp_path / name / "run" / "records" / cell.file_name for name in ("one", "many"))
        assert first.read_bytes() == second.read_bytes()
    ids = read_record(tmp_path / "many" / "run", CELL_CLEAN)["id"].to_numpy()
    assert len(ids) == 301
    assert ids.max() > 301
    assert (np.diff(ids) > 0).all()

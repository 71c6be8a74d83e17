"""Training and evaluation on the data sets with layouts of their own, and on stored suites and arrays, end to end."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, configuration
from PIL import Image

from gch_bench.apps.run import train_and_evaluate

OWN = ("data.workers=0", "recipe=digits", "recipe.batch_size=4", "recipe.epochs=1", "data.size=32", "data.resize=null")
SIDE, COUNT = 32, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (5 * COUNT, SIDE, SIDE, 3), dtype=np.uint8)


def run(output: Path, *more: str) -> dict[str, pd.DataFrame]:
    train_and_evaluate(configuration(*TINY, *OWN, *more, f"output={output}"))
    return {file.stem: pd.read_parquet(file) for file in sorted((output / "records").iterdir())}


def write(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[index]).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for i in range(COUNT):
            write(tmp_path / "data" / split / ("ant" if i < 3 else "bee") / f"{i}.png", i)
    return tmp_path / "data"


def test_a_suite_with_levels_on_tiny_imagenet(tmp_path: Path) -> None:
    root, classes = tmp_path / "tiny", ("n01443537", "n01629819")
    lines = []
    for i in range(COUNT):
        write(root / "train" / classes[i % 2] / "images" / f"{i}.JPEG", i)
        write(root / "val" / "images" / f"val_{i}.JPEG", i)
        lines.append(f"val_{i}.JPEG\t{classes[i % 2]}\t0\t0\t1\t1\n")
        for level in ("1.0", "2.0", "3.0", "5.0", "10.0"):
            write(tmp_path / "c" / "sparkles" / level / classes[i % 2] / f"val_{i}.JPEG", COUNT + i)
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    chosen = ("corruptions=imagenet_c_bar", f"corruptions.root={tmp_path / 'c'}", "corruptions.names=[sparkles]")
    rows = run(tmp_path / "run", "data=tiny_imagenet", f"data.root={root}", "data.num_classes=2", *chosen)
    assert sorted(rows) == ["clean-0", *(f"sparkles-{severity}" for severity in range(1, 6))]
    assert all(table["label"].tolist() == [0, 0, 0, 1, 1, 1] for table in rows.values())
    means = pd.read_csv(tmp_path / "run" / "means.csv")
    assert means["corruption"].tolist() == ["clean", "sparkles", "mean"]


def test_stored_arrays_are_their_images(tree: Path, tmp_path: Path) -> None:
    """An array whose second severity are the clean images gives the clean cell's numbers there, and nowhere else."""
    (tmp_path / "c").mkdir()
    pixels = np.roll(PIXELS, COUNT, axis=0)
    np.save(tmp_path / "c" / "fog.npy", pixels)
    np.save(tmp_path / "c" / "labels.npy", np.tile([0, 0, 0, 1, 1, 1], 5))
    chosen = ("corruptions=stored", f"corruptions.root={tmp_path / 'c'}", "corruptions.names=[fog]")
    rows = run(tmp_path / "run", "data=folder", f"data.root={tree}", *chosen)
    assert [severity for severity in range(1, 6) if rows[f"fog-{severity}"]["nll"].equals(rows["clean-0"]["nll"])] == [2]


def test_webdataset_shards_give_the_run_of_the_same_files(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    for split, word in (("train", "train"), ("val", "validation")):
        with tarfile.open(root / f"mini-{word}-0000.tar", "w") as archive:
            for path in sorted((tree / split).rglob("*.png")):
                for name, content in (
                    (f"{path.stem}.png", path.read_bytes()),
                    (f"{path.stem}.cls", b"01"[int(path.stem) // 3 :][:1]),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    files = run(tmp_path / "files", "data=folder", f"data.root={tree}", "corruptions=none")["clean-0"]
    shards = run(tmp_path / "tar", "data=timm", "data.reader=wds/mini", f"data.root={root}", "corruptions=none")["clean-0"]
    pd.testing.assert_frame_equal(files, shards, check_exact=True)


def test_training_on_a_set_for_evaluation_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(*TINY, "data=imagenet_a", f"data.root={tmp_path}", f"output={tmp_path / 'run'}")
    assert "data.name must be one of digits, imagenet, folder" in message
    assert "got 'imagenet_a', which evaluate.py alone takes" in message
    assert not (tmp_path / "run").exists()

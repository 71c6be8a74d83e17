"""Evaluation of stored corrupted images, end to end: the same numbers as of the same images made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from gch_bench.apps.run import train_and_evaluate
from gch_bench.corruptions import corrupt

Refused = Callable[..., str]
NAMES, SEVERITIES, SIZE = ("gaussian_noise", "contrast"), (1, 4), 32
CHOSEN = (f"corruptions.names=[{','.join(NAMES)}]", "corruptions.severities=[1,4]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/: two classes of 40x40 PNGs, 8 train and 5 val images each, used as 32x32 crops; c/: those corrupted, as JPEG of
    quality 85; weights/: a run trained on them."""
    place = tmp_path_factory.mktemp("stored")
    random = torch.Generator().manual_seed(0)
    val = []
    for split, count in (("train", 8), ("val", 5)):
        for name in ("cat", "dog"):
            (place / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (5, 5, 3), generator=random, dtype=torch.uint8)
                image = Image.fromarray(pixels.numpy()).resize((40, 40), Image.Resampling.BICUBIC)
                image.save(place / "data" / split / name / f"{i}.png")
                if split == "val":
                    val.append((f"{name}/{i}.JPEG", pil_to_tensor(image.crop((4, 4, 36, 36)))))
    for name in NAMES:
        for severity in SEVERITIES:
            for number, (file, clean) in enumerate(val):
                path = place / "c" / name / str(severity) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                image_3HW = corrupt(clean[None], name, severity, torch.tensor([number]), 0, "cifar_32")[0]
                Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).save(path, quality=85, optimize=True)
    run(place, "weights", *CHOSEN, name="train")
    return place


def options(place: Path, output: str, *more: str) -> list[str]:
    own = (
        "data=folder", f"data.root={place / 'data'}", f"data.size={SIZE}", "data.resize=40", "data.workers=0", "recipe=digits",
        "recipe.batch_size=4", "recipe.epochs=2", f"output={place / output}",
    )  # fmt: skip
    return [*TINY, *own, *more]


def run(place: Path, output: str, *more: str, name: str = "evaluate") -> dict:
    weights = [] if name == "train" else [f"model.checkpoint={place / 'weights' / 'checkpoints' / 'last.pt'}"]
    train_and_evaluate(configuration(*options(place, output, *weights, *more), name=name))
    return json.loads((place / output / "run.json").read_text())


def rows(place: Path, output: str) -> dict[str, pd.DataFrame]:
    return {file.name: pd.read_parquet(file) for file in sorted((place / output / "records").iterdir())}


def test_stored_equals_generated_with_jpeg_roundtrip(place: Path) -> None:
    stored = run(place, "stored", "corruptions=stored", f"corruptions.root={place / 'c'}", *CHOSEN, "data.workers=1")
    generated = run(place, "generated", "corruptions.jpeg_roundtrip=true", *CHOSEN)
    plain = run(place, "plain", *CHOSEN)
    first, second, third = (rows(place, output) for output in ("stored", "generated", "plain"))
    assert list(first) == list(second) == list(third)
    assert len(first) == 1 + len(NAMES) * len(SEVERITIES)
    for cell in first:
        pd.testing.assert_frame_equal(first[cell], second[cell], check_exact=True)
        assert first[cell]["nll"].equals(third[cell]["nll"]) == (cell == "clean-0.parquet"), "JPEG is of corrupted cells only"
    protocols = [facts["protocol"] for facts in (stored, generated, plain)]
    assert len({facts["protocol_id"] for facts in (stored, generated, plain)}) == 3
    assert [protocol["source"] for protocol in protocols] == ["stored", "generated", "generated"]
    assert [protocol["jpeg_roundtrip"] for protocol in protocols] == [True, True, False]
    assert {key: stored["protocol"][key] for key in ("parameters", "corruption_seed", "draws", "geometry")} == {
        "parameters": "n/a",
        "corruption_seed": None,
        "draws": "n/a",
        "geometry": "resize40-bilinear-centercrop32",
    }
    assert generated["protocol_id"].startswith("generated-folder-32px-cifar_32-jpeg85-fp32-n10-")


def test_measurements_are_not_mixed_in_a_folder(place: Path, refused: Refused) -> None:
    """What runs on generated images stays that: with JPEG, or of stored images, it is another run."""
    weights = f"model.checkpoint={place / 'weights' / 'checkpoints' / 'last.pt'}"
    run(place, "mixed", *CHOSEN)
    before = rows(place, "mixed")
    message = refused(*options(place, "mixed", weights, *CHOSEN, "corruptions.jpeg_roundtrip=true"), name="evaluate")
    assert "another run (it differs in corruptions.jpeg_roundtrip)" in message
    message = refused(*options(place, "mixed", weights, *CHOSEN, f"corruptions.root={place / 'c'}"), name="evaluate")
    assert "another run (it differs in corruptions.stored)" in message
    assert all(frame.equals(before[cell]) for cell, frame in rows(place, "mixed").items())


def test_another_stored_tree(place: Path, tmp_path: Path, refused: Refused) -> None:
    """The same cells of other images do not replace the first ones'."""
    weights = f"model.checkpoint={place / 'weights' / 'checkpoints' / 'last.pt'}"
    one = ("corruptions.names=[contrast]", "corruptions.severities=[1]")
    run(place, "trees", f"corruptions.root={place / 'c'}", *one)
    (tmp_path / "contrast").mkdir()
    (tmp_path / "contrast" / "1").symlink_to(place / "c" / "contrast" / "1")
    run(place, "trees", f"corruptions.root={tmp_path}", *one)  # the same images elsewhere
    (tmp_path / "contrast" / "1").unlink()
    (tmp_path / "contrast" / "1").symlink_to(place / "c" / "contrast" / "4")
    message = refused(*options(place, "trees", weights, f"corruptions.root={tmp_path}", *one), name="evaluate")
    assert "contrast-1 of other stored images" in message


def test_incomplete_trees_stop_before_the_start(place: Path, refused: Refused) -> None:
    weights = f"model.checkpoint={place / 'weights' / 'checkpoints' / 'last.pt'}"
    stored = (weights, f"corruptions.root={place / 'c'}")
    message = refused(*options(place, "none", *stored, "corruptions.names=[contrast,fog]"), name="evaluate")
    assert "must hold contrast/3/" in message  # corruptions=quick has severity 3
    assert f"{SIZE + 8}x{SIZE + 8} pixels" in refused(
        *options(place, "none", *stored, *CHOSEN, "data.size=40", "data.resize=null"), name="evaluate"
    )
    assert not (place / "none").exists()


def test_resized_stored_images_are_another_protocol(place: Path) -> None:
    """36x36 network input from the stored 32x32 images: shorter side to 40 and a second crop, only when asked for."""
    more = ("data.size=36", *CHOSEN, f"corruptions.root={place / 'c'}", "corruptions.resize=true")
    facts = run(place, "resized", *more)
    assert facts["protocol"]["source"] == "stored_resized"
    assert facts["protocol_id"].startswith("stored_resized-folder-36px-fp32-")
    assert len(rows(place, "resized")) == 1 + len(NAMES) * len(SEVERITIES)


def test_unreadable_stored_image_counts_in_its_own_cell(place: Path, tmp_path: Path) -> None:
    one = ("corruptions.names=[contrast]", "corruptions.severities=[1,4]", "data.skip_bad=true")
    for severity in SEVERITIES:
        for file in (place / "c" / "contrast" / str(severity)).rglob("*.JPEG"):
            target = tmp_path / "contrast" / str(severity) / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "contrast" / "1" / "cat" / "3.JPEG").write_bytes(b"no image")
    facts = run(place, "bad", f"corruptions.root={tmp_path}", *one)
    assert {cell: len(frame) for cell, frame in rows(place, "bad").items()} == {
        "clean-0.parquet": 10,
        "contrast-1.parquet": 9,
        "contrast-4.parquet": 10,
    }
    assert facts["skipped"]["val"]["count"] == 1

"""Stored corrupted images: matched with the clean ones by path, and used as they lie there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import batches_of
from PIL import Image

from gch_bench.data.images import BadImage, FileImages, WrongSize
from gch_bench.data.loaders import refuse_bad
from gch_bench.data.stored import stored_images
from gch_bench.data.transforms import EvalTransform
from gch_bench.errors import UserError

CLEAN = FileImages(["cat/b.png", "cat/a.x.JPEG", "dog/a.x.jpg"], np.array([0, 0, 1]), "/clean")  # not sorted: ids are its own
FILES = ("cat/a.x.JPEG", "cat/b.JPEG", "dog/a.x.jpg")
CELLS = [("fog", 1), ("fog", 5)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for corruption, severity in CELLS:
        for shade, file in enumerate(FILES):
            path = tmp_path / "c" / corruption / str(severity) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (50 * shade + severity, 0, 0)).save(path, "JPEG")
        (tmp_path / "c" / corruption / f"{severity}.sha256").write_text("checksums lie beside the images")
    return tmp_path / "c"


def test_ids_are_the_clean_ones(root: Path) -> None:
    cells = stored_images(root, CELLS, CLEAN, 16)
    assert list(cells) == CELLS
    for (corruption, severity), images in cells.items():
        assert images.names == ["cat/b.JPEG", "cat/a.x.JPEG", "dog/a.x.jpg"]
        assert images.labels is CLEAN.labels
        assert images.path(0) == str(root / corruption / str(severity) / "cat" / "b.JPEG")
        red = [np.array(images.load(i))[0, 0, 0] for i in range(3)]
        np.testing.assert_allclose(red, [50 + severity, severity, 100 + severity], atol=3)


def test_fingerprint_is_of_the_content_not_the_place(root: Path) -> None:
    before = stored_images(root, CELLS, CLEAN, 16)
    shutil.move(root, root.parent / "moved")
    after = stored_images(root.parent / "moved", CELLS, CLEAN, 16)
    assert before[CELLS[0]].fingerprint == after[CELLS[0]].fingerprint != after[CELLS[1]].fingerprint


def refusal(root: Path, size: int | None = 16, cells: list[tuple[str, int]] = CELLS, clean: FileImages = CLEAN) -> str:
    with pytest.raises(UserError) as error:
        stored_images(root, cells, clean, size)
    return str(error.value)


def test_missing_folders(root: Path, tmp_path: Path) -> None:
    assert "corruptions.root must be an existing, readable folder, got /nowhere" in refusal(Path("/nowhere"))
    message = refusal(root, cells=[("fog", 1), ("snow", 1)])
    assert f"must hold snow/1/, got {root} without it (it holds fog)" in message
    assert "fog/2/" in refusal(root, cells=[("fog", 2)])


def test_what_can_be_evaluated_is_told(root: Path) -> None:
    message = refusal(root, cells=[(name, severity) for name in ("fog", "snow") for severity in (1, 2, 5)])
    assert message.endswith("to evaluate what it holds, add 'corruptions.names=[fog]' 'corruptions.severities=[1,5]'")
    assert "to evaluate" not in refusal(root, cells=[("snow", 1)])


def test_folders_named_by_the_numbers_of_classes(tmp_path: Path) -> None:
    clean = FileImages(["n01440764/a.jpeg", "n15075141/a.jpeg"], np.array([0, 1]), "/clean")
    for folder in ("0", "999"):
        path = tmp_path / "fog" / "1" / folder / "a.JPEG"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    assert stored_images(tmp_path, [("fog", 1)], clean, 16)["fog", 1].names == ["0/a.JPEG", "999/a.JPEG"]
    shutil.move(tmp_path / "fog" / "1" / "0", tmp_path / "fog" / "1" / "1000")
    assert "1 missing (first: n01440764/a) and 1 too many (first: 1000/a.JPEG)" in refusal(
        tmp_path, cells=[("fog", 1)], clean=clean
    )


def test_missing_and_surplus_images(root: Path) -> None:
    (root / "fog" / "5" / "cat" / "b.JPEG").rename(root / "fog" / "5" / "dog" / "c.JPEG")
    message = refusal(root)
    assert f"{root}/fog/5 must hold the clean cell's 3 images" in message
    assert "1 missing (first: cat/b) and 1 too many (first: dog/c.JPEG)" in message
    (root / "fog" / "5" / "dog" / "c.JPEG").unlink()
    assert "got 1 missing (first: cat/b); for a subset" in refusal(root)
    shutil.copy(root / "fog" / "1" / "cat" / "b.JPEG", root / "fog" / "5" / "cat" / "b.jpg")
    stored_images(root, CELLS, CLEAN, 16)
    shutil.copy(root / "fog" / "1" / "cat" / "b.JPEG", root / "fog" / "5" / "cat" / "b.JPEG")
    assert "got 1 too many (first: cat/b.j" in refusal(root).replace("JPEG", "jpg")


def test_clean_images_that_differ_in_their_suffix_alone(root: Path) -> None:
    clean = FileImages(["cat/a.jpg", "cat/a.png"], np.array([0, 0]), "/clean")
    with pytest.raises(UserError, match="differ in more than their suffix"):
        stored_images(root, CELLS, clean, 16)


def test_size(root: Path) -> None:
    path = root / "fog" / "5" / "cat" / "b.JPEG"
    Image.new("RGB", (18, 16)).save(path)
    message = refusal(root)
    assert f"{path} must be 16x16 pixels" in message
    assert "got 18x16: set data.size to theirs, or corruptions.resize=true" in message
    stored_images(root, [("fog", 1)], CLEAN, 16)
    assert stored_images(root, CELLS, CLEAN, None)[("fog", 5)].load_or_bad(0).size == (18, 16)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_size_of_every_image_is_checked_when_it_is_loaded(root: Path, workers: int, skip_bad: bool) -> None:
    """Only 64 images a cell are looked at before the start; a wrong one among the others is refused, never skipped."""
    images = stored_images(root, CELLS, CLEAN, 16)[("fog", 5)]
    Image.new("RGB", (18, 16)).save(images.path(1))
    assert isinstance(images.load_or_bad(1), WrongSize)
    assert not isinstance(images.load_or_bad(0), BadImage)
    loader = batches_of(images, EvalTransform(16), 2, workers)
    with pytest.raises(UserError) as error:
        refuse_bad([bad for batch in loader for bad in batch.bad], skip_bad)
    assert str(error.value).startswith(f"{images.path(1)} must be 16x16 pixels")
    assert "Traceback" not in str(error.value)

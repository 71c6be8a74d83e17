"""One pass for several networks: what each sees, which rows it gets, how the work is cut, and going on after a stop."""

import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from corruption_references import notes_of_work
from PIL import Image
from tinynet import tinynet
from torch import nn

from gch_bench.corruptions import corrupt
from gch_bench.data.images import ArrayImages
from gch_bench.data.transforms import EvalTransform, Normalisation, normalise
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation import run
from gch_bench.evaluation.predict import Predictor
from gch_bench.evaluation.run import EvaluatedImages, NetworkTask, evaluate
from gch_bench.results import shards
from gch_bench.results.records import CELL_CLEAN, Cell, Rows, read_logits, read_record

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
ALONE = World(0, 1, torch.device("cpu"))
FACTS = {"protocol": "p"}
CELLS = [CELL_CLEAN, Cell("contrast", 2), Cell("gaussian_noise", 3)]
N = 23
SEED = 7  # of the corruptions
PIXELS = np.random.default_rng(1).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
CLEAN = ArrayImages([str(i) for i in range(N)], np.arange(N) % 5, PIXELS)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHARD_IMAGES", 8)


def images(jpeg: bool = False, cells: Sequence[Cell] = CELLS, batch_size: int = 4) -> EvaluatedImages:
    return EvaluatedImages(CLEAN, np.arange(N), list(cells), {}, SEED, jpeg, batch_size, 0, False)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return tinynet(5).eval()


def task(folder: Path, seed: int = 0, size: int = 32, normalisation: Normalisation = NORMALISATION) -> NetworkTask:
    return NetworkTask(
        Predictor(network(seed), normalisation, "fp32"), folder, FACTS, {None: EvalTransform(size)}, "cifar_32",
        np.ones((len(CELLS), N), bool), frozenset(),
    )  # fmt: skip


def joined(folder: Path, logits: frozenset[Cell] = frozenset()) -> dict[Cell, pd.DataFrame]:
    shards.join(folder, CELLS, N, FACTS, {}, logits)
    return {cell: read_record(folder, cell) for cell in CELLS}


def test_networks_in_one_pass_get_the_rows_of_a_pass_alone(tmp_path: Path) -> None:
    """Bit for bit, for networks with different weights, preparations and normalisations."""
    other = Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    choices = [(0, 32, NORMALISATION), (1, 32, NORMALISATION), (2, 24, NORMALISATION), (3, 32, other)]
    tasks = [task(tmp_path / f"both{i}", *each) for i, each in enumerate(choices)]
    evaluate(tasks, images(), ALONE)
    for i, each in enumerate(choices):
        evaluate([task(tmp_path / f"alone{i}", *each)], images(), ALONE)
        first, second = joined(tmp_path / f"both{i}"), joined(tmp_path / f"alone{i}")
        for cell in CELLS:
            pd.testing.assert_frame_equal(first[cell], second[cell], check_exact=True)
            assert first[cell]["id"].tolist() == list(range(N))
    assert not joined(tmp_path / "both0")[CELL_CLEAN].equals(joined(tmp_path / "both1")[CELL_CLEAN])


def test_each_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = ArrayImages.load
    monkeypatch.setattr(ArrayImages, "load", lambda self, index: (loaded.append(index), load(self, index))[1])
    evaluate([task(tmp_path / "a"), task(tmp_path / "b", 1, 24)], images(), ALONE)
    assert loaded == list(range(N))


def test_versions_of_an_image_share_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What severities compute of an image is computed once for all networks that see the same pixels."""
    computed = notes_of_work(monkeypatch, ("contrast", "brightness"))
    cells = [CELL_CLEAN, Cell("contrast", 2), Cell("contrast", 5), Cell("brightness", 1)]
    tasks = [task(tmp_path / "a"), task(tmp_path / "b", 1), task(tmp_path / "smaller", 2, 24)]
    for each in tasks:
        each.needed = np.ones((len(cells), N), bool)
    evaluate(tasks, images(cells=cells), ALONE)
    assert len(computed) == 2 * 2 * N, "once for each image in each of the two sizes, for each of the two corruptions"


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_share_the_work_exactly(tmp_path: Path, processes: int) -> None:
    evaluate([task(tmp_path / "one")], images(), ALONE)
    for rank in range(processes):
        evaluate([task(tmp_path / "many")], images(), World(rank, processes, torch.device("cpu")))
    first, second = joined(tmp_path / "one"), joined(tmp_path / "many")
    assert all(first[cell].equals(second[cell]) for cell in CELLS)


def test_a_stopped_pass_goes_on_after_its_last_shard(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls = []

    def stop_late(note: str, rows: int) -> None:
        calls.append(rows)
        if len(calls) == 11:
            raise Stop

    with pytest.raises(Stop):
        evaluate([task(tmp_path / "run")], images(), ALONE, stop_late)
    held = shards.done(tmp_path / "run", FACTS, CELLS, N, frozenset())
    assert held[:, :8].all()
    assert not held[:, 8:].any()
    rest = task(tmp_path / "run")
    rest.needed &= ~held
    rows: list[int] = []
    evaluate([rest], images(), ALONE, lambda note, count: rows.append(count))
    assert sum(rows) == 3 * (N - 8)
    evaluate([task(tmp_path / "straight")], images(), ALONE)
    first, second = joined(tmp_path / "run"), joined(tmp_path / "straight")
    assert all(first[cell].equals(second[cell]) for cell in CELLS)
    shards.clear(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "records").iterdir()) == sorted(cell.file_name for cell in CELLS)


def test_networks_need_different_cells_and_images(tmp_path: Path) -> None:
    first, second = task(tmp_path / "a"), task(tmp_path / "b", 1)
    evaluate([second], images(), ALONE)
    expected = joined(tmp_path / "b")
    shards.clear(tmp_path / "b")
    again = task(tmp_path / "b", 1)
    again.needed[0] = False  # the clean cell has its record
    again.needed[1, :10] = False
    early = task(tmp_path / "b", 1)
    early.needed &= False
    early.needed[1, :10] = True
    evaluate([early], images(batch_size=5), ALONE)  # another batch size, before the run was stopped
    evaluate([first, again], images(), ALONE)
    shards.join(tmp_path / "b", CELLS[1:], N, FACTS, {}, frozenset())
    for cell in CELLS:
        pd.testing.assert_frame_equal(read_record(tmp_path / "b", cell), expected[cell], check_exact=False, rtol=1e-5)
    assert set(joined(tmp_path / "a")) == set(CELLS)


def test_lost_rows_are_never_recorded(tmp_path: Path) -> None:
    evaluate([task(tmp_path)], images(), ALONE)
    first, *_ = shards.shards(tmp_path, FACTS)
    first.path.unlink()
    with pytest.raises(RuntimeError, match="must give as many rows"):
        joined(tmp_path)


def test_rows_that_two_shards_hold_count_once(tmp_path: Path) -> None:
    """A pass without logits is stopped, goes on with the logits of one cell, is stopped again, and ends without; then a pass
    wants these logits of all images, and makes those that no shard has."""
    first, second, third, last = (task(tmp_path) for _ in range(4))
    first.needed[:, 12:] = False
    evaluate([first], images(), ALONE)
    second.logits = frozenset(CELLS[:1])
    second.needed &= ~shards.done(tmp_path, FACTS, CELLS, N, second.logits)
    second.needed[:, 16:] = False
    evaluate([second], images(), ALONE)
    third.needed &= ~shards.done(tmp_path, FACTS, CELLS, N, third.logits)
    evaluate([third], images(), ALONE)
    evaluate([task(tmp_path / "straight")], images(), ALONE)
    rows, expected = joined(tmp_path), joined(tmp_path / "straight")
    assert all(rows[cell].equals(expected[cell]) for cell in CELLS)
    last.logits = second.logits
    last.needed &= ~shards.done(tmp_path, FACTS, CELLS, N, last.logits)
    assert last.needed.sum(1).tolist() == [N - 16, 0, 0], "the second pass has the logits of the first 16"
    evaluate([last], images(), ALONE)
    rows = joined(tmp_path, last.logits)
    assert all(rows[cell].equals(expected[cell]) for cell in CELLS)
    assert read_logits(tmp_path, CELLS[0]).shape == (N, 5)


def test_a_shard_claims_only_the_images_that_it_has(tmp_path: Path) -> None:
    """A pass over what an earlier shard lacks must not stand in for that shard, should it turn out to be damaged."""
    middle, rest = task(tmp_path), task(tmp_path)
    middle.needed[:, :8] = False
    middle.needed[:, 16:] = False
    evaluate([middle], images(), ALONE)
    (shard,) = (tmp_path / "records" / "shards").iterdir()
    rest.needed &= ~shards.done(tmp_path, FACTS, CELLS, N, frozenset())
    assert rest.needed[:, :8].all()
    assert not rest.needed[:, 8:16].any()
    evaluate([rest], images(), ALONE)
    assert shards.done(tmp_path, FACTS, CELLS, N, frozenset()).all()
    shard.write_bytes(shard.read_bytes()[:100])
    held = shards.done(tmp_path, FACTS, CELLS, N, frozenset())
    assert not held[:, 8:16].any()
    assert held[:, :8].all()
    assert held[:, 16:].all()


def test_a_cell_without_readable_images_does_not_block_the_others(tmp_path: Path) -> None:
    one = task(tmp_path)
    one.needed[1] = False
    evaluate([one], images(), ALONE)
    with pytest.raises(UserError, match="no image of contrast-2 is readable"):
        joined(tmp_path)
    assert len(read_record(tmp_path, CELLS[2])) == N


def test_a_full_disk_ends_in_one_line_and_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, calls = shards.pq.ParquetWriter, []

    def until_full(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writer(*arguments)

    monkeypatch.setattr(shards.pq, "ParquetWriter", until_full)
    with pytest.raises(UserError, match="No space left on device; free space there or choose another folder"):
        evaluate([task(tmp_path)], images(), ALONE)
    (kept,) = (tmp_path / "records" / "shards").iterdir()
    assert [shard.path for shard in shards.shards(tmp_path, FACTS)] == [kept]


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    evaluate([task(tmp_path)], images(), ALONE)
    first, *_ = shards.shards(tmp_path, FACTS)
    first.path.write_bytes(first.path.read_bytes()[:100])
    held = shards.done(tmp_path, FACTS, CELLS, N, frozenset())
    assert not held[:, :8].any()
    assert held[:, 8:].all()
    assert not shards.done(tmp_path, {"protocol": "q"}, CELLS, N, frozenset()).any()


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_pixels_that_the_network_sees(tmp_path: Path, cell: Cell, jpeg: bool) -> None:
    """Corrupted, then through Pillow's JPEG at quality 85 if asked for. Clean images as they come."""
    seen: list[torch.Tensor] = []
    one = task(tmp_path)
    one.needed = one.needed[:1]
    one.predictor.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evaluate([one], images(jpeg, [cell], batch_size=N), ALONE)
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous()
    if cell != CELL_CLEAN:
        expected = corrupt(expected, *cell, torch.arange(N), SEED, "cifar_32")
        if jpeg:
            expected = torch.stack([through_jpeg(image) for image in expected])
    torch.testing.assert_close(seen, [normalise(expected, NORMALISATION)], rtol=0, atol=0)


def through_jpeg(image: torch.Tensor) -> torch.Tensor:
    with io.BytesIO() as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85, optimize=True)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def test_recorded_logits_are_the_networks_own(tmp_path: Path) -> None:
    one = task(tmp_path)
    one.logits = frozenset(CELLS[:2])
    evaluate([one], images(), ALONE)
    joined(tmp_path, one.logits)
    inputs = normalise(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), NORMALISATION)
    with torch.inference_mode():
        expected = one.predictor.network(inputs).numpy()
    recorded = read_logits(tmp_path, CELL_CLEAN)
    assert recorded.dtype == np.float16
    np.testing.assert_allclose(recorded, expected, rtol=1e-3, atol=1e-4)
    assert (recorded.argmax(1) == read_record(tmp_path, CELL_CLEAN)["prediction"]).mean() > 0.9
    assert read_logits(tmp_path, CELLS[1]).shape == (N, 5)
    with pytest.raises(UserError, match=r"holds no logits: evaluate with records\.logits=true"):
        read_logits(tmp_path, CELLS[2])


def test_an_image_with_several_labels_is_scored_against_the_most_probable_one(tmp_path: Path) -> None:
    sets = [(i % 5, (i + 2) % 5) for i in range(N)]
    several = images()._replace(clean=ArrayImages(CLEAN.names, CLEAN.labels, PIXELS, label_sets=sets))
    one = task(tmp_path)
    evaluate([one], several, ALONE)
    with torch.inference_mode():
        logits = one.predictor.network(normalise(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), NORMALISATION)).tolist()
    expected = [max(labels, key=lambda label: scores[label]) for labels, scores in zip(sets, logits, strict=True)]
    assert joined(tmp_path)[CELL_CLEAN]["label"].tolist() == expected
    assert expected != CLEAN.labels.tolist(), "the first label of each image"


def test_logits_beyond_float16_are_refused(tmp_path: Path) -> None:
    one = task(tmp_path)
    one.logits = frozenset([CELL_CLEAN])
    one.predictor.network.get_submodule("head").weight.data *= 1e8
    with pytest.raises(UserError, match="does not fit into float16"):
        evaluate([one], images(), ALONE)


def test_rows_survive_their_file() -> None:
    rows = Rows(pd.DataFrame({"id": [3, 1], **dict.fromkeys(list(Rows.joined([]).atoms)[1:], 0)}), np.eye(2, dtype=np.float16))
    together = Rows.joined([rows])
    assert together.atoms["id"].tolist() == [1, 3]
    assert together.logits is not None
    assert together.logits.tolist() == [[0, 1], [1, 0]]

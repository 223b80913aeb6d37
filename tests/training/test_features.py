"""Features of the frozen tower on the disk: the tower's own, whatever happened while they were written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flamboyance.data.documents import Rejected, digest
from flamboyance.data.features import FeatureTable
from flamboyance.data.formats.user_data import UserData
from flamboyance.images import ImageProcessor, load_image
from flamboyance.processes import World
from flamboyance.recipes.training_split import TrainingSplit, read_digests
from flamboyance.training import features
from flamboyance.training.config import TrainingConfig
from flamboyance.training.features import prepare_features
from tests.training.tiny_run import COLORS, jpeg, write_tar

RNG = np.random.default_rng(0)
FILES = ("digests.bin", "features.bin")


class Tower(nn.Module):
    """4 patches of width 3: the means of the quarters of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.spec = {"library": "none", "name": "x", "pretrained": None, "config": {}}
        self.seen = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2) * self.weight


class Processor:
    image_processor = ImageProcessor.clip(16)


def test_features_that_float16_cannot_hold_are_refused(pictures: list[bytes], tmp_path: Path) -> None:
    tower = Tower()
    tower.weight.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"cache_features=true.*65,504"):
        made(tmp_path, tower)


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    folder = tmp_path / "photos"
    folder.mkdir()
    found = [jpeg(list(COLORS)[number % 3], number) for number in range(40)]
    for number, content in enumerate([*found, found[0], b"no image"]):  # one twice, one damaged
        (folder / f"{number:02}.jpg").write_bytes(content)
        (folder / f"{number:02}.txt").write_text("a square")
    return found


def made(tmp_path: Path, tower: Tower, **settings: Any) -> FeatureTable:
    sources = {"photos": UserData(shards=str(tmp_path / settings.pop("shards", "photos")), batch_size=1)}
    config = TrainingConfig(output=str(tmp_path / "run"), sources=dict(sources), steps=1, **settings)
    return prepare_features(tower, Processor(), config, World())


def expected(picture: bytes) -> Tensor:
    images = Processor.image_processor
    return Tower()(images.normalized(images.levels(load_image(picture))[None]))[0]


def test_an_images_features_are_the_towers(pictures: list[bytes], tmp_path: Path) -> None:
    tower = Tower()
    table = made(tmp_path, tower)
    assert table.count == 40 and table.shape == (4, 3) and tower.seen == 41  # and one to learn the shape
    for picture in pictures:
        torch.testing.assert_close(table.of(picture, RNG).float(), expected(picture), atol=2e-3, rtol=2e-3)
    with pytest.raises(Rejected, match="no features"):
        table.of(b"another image", RNG)
    again = made(tmp_path, tower)
    assert again.directory == table.directory and tower.seen == 42


@pytest.mark.parametrize("digests, size", [(16 * 7, 24 * 9 + 5), (16 * 7 + 3, 24 * 8), (0, 11), (16 * 12, 24 * 10)])
def test_what_a_crash_left_is_cut_off_and_completed(
    digests: int, size: int, pictures: list[bytes], tmp_path: Path
) -> None:
    directory = made(tmp_path, Tower()).directory
    for name, kept in zip(FILES, (digests, size), strict=True):
        content = (directory / name).read_bytes()[:kept]
        (directory / name).write_bytes(content + b"?" * (kept % 8))
    tower = Tower()
    table = made(tmp_path, tower)
    assert table.count == 40 and tower.seen == 1 + 40 - min(digests // 16, size // 24)
    for picture in pictures:
        torch.testing.assert_close(table.of(picture, RNG).float(), expected(picture), atol=2e-3, rtol=2e-3)


def test_tars_that_are_complete_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shard(number: int) -> None:
        write_tar(tmp_path / f"{number}.tar", {"a.jpg": jpeg("red", number), "a.txt": b"a square"})

    def count() -> int:
        return made(tmp_path, Tower(), shards="*.tar").count

    shard(0)
    shard(1)
    assert count() == 2
    read: list[str] = []
    true_records = features.records
    monkeypatch.setattr(features, "records", lambda shard, outside: read.append(shard) or true_records(shard, outside))
    assert count() == 2 and not read
    shard(2)
    assert count() == 3 and [Path(one).name for one in read] == ["2.tar"]
    table = made(tmp_path, Tower(), shards="*.tar")
    (table.directory / "features.bin").write_bytes((table.directory / "features.bin").read_bytes()[:-1])
    assert count() == 3 and len(read) == 4


def test_variants_are_drawn_and_are_always_the_same(pictures: list[bytes], tmp_path: Path) -> None:
    table = made(tmp_path, Tower(), feature_augmentations=3)
    drawn = torch.stack([table.of(pictures[0], np.random.default_rng(seed)) for seed in range(40)]).float()
    different = drawn.flatten(1).unique(dim=0)
    assert len(different) == 3
    assert (different - expected(pictures[0]).flatten()).abs().max(1).values.min() < 2e-3
    other = made(tmp_path, Tower(), feature_augmentations=3, feature_cache=str(tmp_path / "other"))
    assert all((table.directory / name).read_bytes() == (other.directory / name).read_bytes() for name in FILES)
    assert made(tmp_path, Tower()).directory != table.directory


@pytest.mark.usefixtures("pictures")
def test_the_cache_has_a_bound(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features of 10 images fill feature_cache_gb="):
        made(tmp_path, Tower(), feature_cache_gb=2.5e-7)


@pytest.mark.usefixtures("pictures")
def test_a_trained_tower_has_no_cache(tmp_path: Path) -> None:
    tower = Tower().requires_grad_(True)
    with pytest.raises(ValueError, match="the vision tower is trained"):
        made(tmp_path, tower)


def test_other_weights_and_preprocessing_are_kept_apart(pictures: list[bytes], tmp_path: Path) -> None:
    first, other = Tower(), Tower()
    other.weight.data.fill_(3.0)
    assert made(tmp_path, first).directory != made(tmp_path, other).directory
    about = json.loads((made(tmp_path, first).directory / "about.json").read_text())
    assert about["width"] == 3 and about["preprocessing"]["mean"]


def test_a_shard_is_read_again_for_other_held_out_images(pictures: list[bytes], tmp_path: Path) -> None:
    """A cache that runs share has no features of those that one of them holds out."""
    write_tar(
        tmp_path / "a.tar", {"0.jpg": pictures[0], "0.txt": b"a square", "1.jpg": pictures[1], "1.txt": b"a square"}
    )
    held = tmp_path / "held_out.json"
    for number in (0, 1):
        held.write_text(json.dumps({"images": [digest(pictures[number])]}), encoding="utf-8")
        read_digests.cache_clear()
        split = TrainingSplit(shards=str(tmp_path / "a.tar"), batch_size=1, held_out=str(held))
        config = TrainingConfig(output=str(tmp_path / "run"), sources={"own": split}, steps=1)
        table = prepare_features(Tower(), Processor(), config, World())
        other = pictures[1 - number]
        assert torch.allclose(table.of(other, RNG).float(), expected(other), atol=0.01)

"""Features on the disk: computed once, found again, never torn."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from flamboyance.evaluation.rices import features
from flamboyance.evaluation.rices.feature_store import Store
from flamboyance.evaluation.rices.features import Encoder, build
from flamboyance.images import ImageProcessor
from tests.processes import Child

SIDE = 16


def save_tower(folder: Path, seed: int = 0, **options: object) -> str:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes | options, image_size=SIDE, patch_size=8)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture
def encoder(tower: str, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """It counts the images that the tower is given, in `encoded`."""
    opened = Encoder.open(tower)
    embed = opened.tower.embed
    monkeypatch.setattr(opened.tower, "embed", lambda pixels: (encoded.append(len(pixels)), embed(pixels))[1])
    encoded.clear()
    return opened


encoded: list[int] = []


def picture(path: Path, seed: int) -> Path:
    levels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).resize((40, 30), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / "images" / f"{i:02}.png", i) for i in range(10)]


def plain(encoder: Encoder, images: list[Path]) -> torch.Tensor:
    """The features by themselves, one image at a time."""
    return torch.cat([encoder.tower.embed(encoder.processor(image)[None]) for image in images])


def test_each_distinct_image_is_encoded_once(tmp_path, encoder, images):
    copy = tmp_path / "elsewhere" / "copy.png"
    copy.parent.mkdir()
    shutil.copy(images[3], copy)
    told: list[int] = []
    asked = [*images, images[0], str(images[1]), copy, *images]
    found = build(asked, encoder, tmp_path / "cache", batch_size=4, advance=told.append)
    assert encoded == [4, 4, 2]
    assert sum(told) == 11
    assert found.broken == {}
    rows = found.rows(asked)
    assert rows.tolist() == [*rows[:10], rows[0], rows[1], rows[3], *rows[:10]]
    assert len(set(rows.tolist())) == 10
    taken = found.take(found.rows(images))
    assert taken.dtype == torch.float16
    torch.testing.assert_close(taken.float(), plain(encoder, images), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(taken.float().norm(dim=1), torch.ones(10), atol=1e-3, rtol=0)


def test_what_is_there_is_neither_encoded_nor_read_again(tmp_path, encoder, tower, images, monkeypatch):
    cache = tmp_path / "cache"
    first = build(images, encoder, cache)
    del encoded[:]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        again = build(images[::-1], encoder, cache)
    assert encoded == []
    assert torch.equal(again.take(again.rows(images)), first.take(first.rows(images)))
    # By another process, which opens the same tower anew; and a few more images.
    more = [*images[:5], picture(tmp_path / "more.png", 99)]
    assert Encoder.open(tower).folder == encoder.folder
    build(more, encoder, cache)
    assert encoded == [1]
    # A data set that was moved, or copied without its times, is read but not encoded.
    del encoded[:]
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "images", moved, copy_function=shutil.copyfile)
    there = build([moved / image.name for image in images], encoder, cache)
    assert encoded == []
    assert torch.equal(there.take(there.rows(moved / i.name for i in images)), first.take(first.rows(images)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        build([moved / image.name for image in images], encoder, cache)


def test_a_changed_image_is_noticed(tmp_path, encoder, images):
    before = build(images, encoder, tmp_path / "cache")
    old = before.take(before.rows(images))
    picture(images[2], 77)
    stat = images[4].stat()
    images[4].write_bytes(picture(tmp_path / "other.png", 78).read_bytes())
    os.utime(images[4], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    del encoded[:]
    after = build(images, encoder, tmp_path / "cache")
    assert sum(encoded) == 2
    new = after.take(after.rows(images))
    assert [i for i in range(10) if not torch.equal(old[i], new[i])] == [2, 4]
    torch.testing.assert_close(new.float(), plain(encoder, images), atol=1e-3, rtol=1e-3)


def replaced_in_secret(image: Path, by: Path) -> None:
    """Another picture in the file, with the size and time of modification of the old one."""
    stat, content = image.stat(), by.read_bytes()
    assert len(content) <= stat.st_size
    image.write_bytes(content + bytes(stat.st_size - len(content)))  # what is after a PNG's end is not read
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize("how", ["written", "put in its place"])
def test_an_image_of_the_same_size_and_time_is_noticed(tmp_path, encoder, images, how):
    images[4].write_bytes(images[4].read_bytes() + bytes(2000))
    before = build(images, encoder, tmp_path / "cache")
    time.sleep(0.05)  # times of files advance in steps of some milliseconds
    if how == "written":
        replaced_in_secret(images[4], picture(tmp_path / "other.png", 78))
    else:
        shutil.copy2(images[4], tmp_path / "copy.png")
        replaced_in_secret(tmp_path / "copy.png", picture(tmp_path / "other.png", 78))
        (tmp_path / "copy.png").replace(images[4])
    del encoded[:]
    after = build(images, encoder, tmp_path / "cache")
    old, new = before.take(before.rows(images)), after.take(after.rows(images))
    assert encoded == [1] and [i for i in range(10) if not torch.equal(old[i], new[i])] == [4]
    torch.testing.assert_close(new.float(), plain(encoder, images), atol=1e-3, rtol=1e-3)


def test_features_that_are_not_finite_are_refused_with_their_file(tmp_path, encoder, images):
    from safetensors.torch import load_file, save_file

    build(images, encoder, tmp_path)
    (part,) = tmp_path.rglob("*.safetensors")
    for wrong in (float("nan"), float("inf")):
        tensors = load_file(part)
        tensors["features"][3, 5] = wrong
        save_file(tensors, part)
        found = build(images, encoder, tmp_path)
        with pytest.raises(ValueError, match=rf"{part.name}.*not finite"):
            found.take(found.rows(images))


@pytest.mark.parametrize("name, wrong", [("features", "short"), ("contents", "short"), ("features", "flat")])
def test_a_part_whose_tensors_do_not_fit_is_named(tmp_path, encoder, images, name, wrong):
    from safetensors.torch import load_file, save_file

    build(images, encoder, tmp_path)
    (part,) = tmp_path.rglob("*.safetensors")
    tensors = load_file(part)
    tensors[name] = tensors[name][:-1].clone() if wrong == "short" else tensors[name].flatten()
    save_file(tensors, part)
    with pytest.raises(ValueError, match=rf"{part.name}.*damaged"):
        build(images, encoder, tmp_path)


def test_a_tower_that_computes_no_numbers_is_refused(tmp_path, tower, images):
    encoder = Encoder.open(tower)
    with torch.no_grad():
        encoder.tower.model.post_layernorm.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"00\.png.*not finite"):
        build(images, encoder, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_changed_tower_is_noticed(tmp_path, tower):
    folders = [Encoder.open(tower).folder]
    folders.append(Encoder.open(tower, processor=ImageProcessor(size=(SIDE, SIDE))).folder)
    folders.append(Encoder.open(save_tower(tmp_path / "gelu", hidden_act="gelu")).folder)  # the same weights
    folders.append(Encoder.open(save_tower(tmp_path / "seed", seed=1)).folder)
    changed = Encoder.open(tower)
    with torch.no_grad():
        changed.tower.model.post_layernorm.bias[3] += 1e-6
    folders.append(changed.folder)
    assert len({folder.rpartition("-")[2] for folder in folders}) == 5
    # Elsewhere it is the same tower.
    shutil.copytree(tower, tmp_path / "copy")
    assert Encoder.open(str(tmp_path / "copy")).folder == f"copy-{folders[0].rpartition('-')[2]}"


def test_broken_images_are_named_and_the_rest_goes_on(tmp_path, encoder, images):
    images[1].write_bytes(images[1].read_bytes()[:60])
    images[2].write_bytes(b"")
    images[3].unlink()
    images[4].write_text("no image", encoding="utf-8")
    twin = tmp_path / "images" / "twin.png"
    twin.write_text("no image", encoding="utf-8")
    told: list[int] = []
    for _ in range(2):
        found = build([*images, twin], encoder, tmp_path / "cache", batch_size=3, advance=told.append)
        assert list(found.broken) == [*map(str, images[1:5]), str(twin)]
        assert found.rows([*images, twin]).tolist().count(-1) == 5
        reasons = ("is truncated", "are empty", "No such file", "is not an image", "is not an image")
        for (name, message), reason in zip(found.broken.items(), reasons, strict=True):
            assert message.startswith(f"{name}: ") and reason in message
    assert sum(encoded) == 6
    assert sum(told) == 22
    picture(images[3], 3)
    assert list(build(images, encoder, tmp_path / "cache").broken) == [str(images[i]) for i in (1, 2, 4)]


def test_threads_and_batches_change_nothing(tmp_path, tower, images):
    encoder = Encoder.open(tower)
    results = []
    for i, (batch_size, threads) in enumerate([(1, 1), (3, 4), (64, None)]):
        found = build(images, encoder, tmp_path / f"{i}", batch_size=batch_size, threads=threads)
        results.append(found.take(found.rows(images)).float())
    for one in results:
        torch.testing.assert_close(one, results[0], atol=1e-3, rtol=1e-3)


def test_parts_are_written_by_number_and_by_time(tmp_path, encoder, images, monkeypatch):
    monkeypatch.setattr(features, "ROWS", 4)
    build(images, encoder, tmp_path / "a", batch_size=3)
    assert len(list((tmp_path / "a").rglob("*.safetensors"))) == 3
    monkeypatch.setattr(features, "SECONDS", 0.0)
    found = build(images, encoder, tmp_path / "b", batch_size=3)
    assert len(list((tmp_path / "b").rglob("*.safetensors"))) == 10
    torch.testing.assert_close(found.take(found.rows(images)).float(), plain(encoder, images), atol=1e-3, rtol=1e-3)


def slow_build(tower: str, cache: Path, folder: Path, seconds: float, last: int = 10) -> None:
    """Two images a part; says so in the log after each image, and waits to be killed after the last one."""
    features.ROWS = 2

    def advance(count: int) -> None:
        nonlocal last
        print("done", flush=True)
        last -= count
        time.sleep(seconds if last > 0 else 600)

    build(sorted(folder.glob("*.png")), Encoder.open(tower), cache, batch_size=2, advance=advance)


def test_a_killed_build_goes_on(tmp_path, encoder, tower, images):
    cache = tmp_path / "cache"
    run = Child(slow_build, tower, cache, images[0].parent, 0.0, 6, log=tmp_path / "log")
    while run.printed.count("done") < 6 and run.poll() is None:
        time.sleep(0.01)
    assert run.kill() == -signal.SIGKILL
    kept = sum(len(part) for part in Store(cache / encoder.folder).parts)
    assert 4 <= kept < 10
    # And what a kill in the midst of writing leaves is not taken for a part.
    (cache / encoder.folder / ".0123.safetensors.abcd").write_bytes(b"half of it")
    found = build(images, encoder, cache)
    assert sum(encoded) == 10 - kept
    torch.testing.assert_close(found.take(found.rows(images)).float(), plain(encoder, images), atol=1e-3, rtol=1e-3)


def test_a_part_that_cannot_be_put_in_place_is_not_there(tmp_path, encoder, images, monkeypatch):
    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("flamboyance.evaluation.rices.feature_store.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            build(images, encoder, tmp_path)
    assert [path.name for path in (tmp_path / encoder.folder).iterdir()] == ["tower.json"]
    assert build(images, encoder, tmp_path).broken == {}


def test_a_damaged_part_is_named(tmp_path, encoder, images):
    build(images, encoder, tmp_path)
    (part,) = tmp_path.rglob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{part.name}.*damaged"):
        build(images, encoder, tmp_path)
    part.unlink()
    assert build(images, encoder, tmp_path).rows(images).min() == 0


def test_two_builds_at_once(tmp_path, encoder, tower, images):
    given = (tower, tmp_path / "cache", images[0].parent, 0.02, 20)
    both = [Child(slow_build, *given, log=tmp_path / f"log{number}") for number in range(2)]
    assert [one.wait(600) for one in both] == [0, 0]
    found = build(images, encoder, tmp_path / "cache")
    assert encoded == []
    torch.testing.assert_close(found.take(found.rows(images)).float(), plain(encoder, images), atol=1e-3, rtol=1e-3)


def test_features_stay_on_the_disk_until_they_are_looked_at(tmp_path):
    """25 MB of features are opened for the memory of their hashes."""
    store = Store(tmp_path)
    rows, contents = 16384, [i.to_bytes(16, "big") for i in range(16384)]
    store.add([torch.zeros(rows, 768, dtype=torch.float16)], contents, [content * 2 for content in contents])
    held = _resident()
    opened = Store(tmp_path)
    assert _resident() - held < 10_000_000
    assert opened.parts[0].shape == (rows, 768)
    assert opened.has(contents[5]) and not opened.has(b"\xff" * 16)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("no /proc here")
    return int(status.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_reading_goes_on_ahead_of_the_tower(monkeypatch):
    """Files are read while the tower computes, and not all at once."""
    started: list[str] = []
    reads = features._ahead(lambda path: started.append(path) or path, [str(i) for i in range(100)], 2, 8)
    assert next(reads) == "0"
    end = time.monotonic() + 300
    while len(started) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert 1 < len(started) <= 9
    assert list(reads) == [str(i) for i in range(1, 100)]

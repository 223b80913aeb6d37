"""Pictures of every kind and in every state, and the numbers that a tower gets of them."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flamboyance.images import ImageError, ImageProcessor, frames_of, load_image, loading

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half green."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2, clear: bytes | None = None) -> bytes:
    """A PNG by hand: headers that claim what one likes, depths that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    header += b"" if clear is None else chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], within: int = 4) -> bool:
    assert image.mode == "RGB"
    return max(abs(a - b) for a, b in zip(image.getpixel(at), colour, strict=True)) <= within


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_files_of_every_format_by_every_way(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"two halves é.{kind.lower()}"
    path.write_bytes(encoded(halves(), kind))
    with path.open("rb") as file, Image.open(path) as opened:
        for source in (
            path,
            str(path),
            path.as_uri(),
            path.read_bytes(),
            memoryview(path.read_bytes()),
            file,
            opened,
        ):
            image = load_image(source)
            assert image.size == (40, 20)
            assert near(image, (5, 10), RED, within=12)
            assert near(image, (35, 10), GREEN, within=12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    upright = halves(40, 20)
    upright.paste(WHITE, (0, 0, 20, 10))  # no symmetry left
    flips = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
    store = {number: Image.Transpose[name] for number, name in enumerate(flips, start=2)}
    stored = upright.transpose(store[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(stored, kind, exif=exif))
    for again in (image, load_image(image)):
        assert again.size == (40, 20)
        corners = zip([(3, 3), (3, 16), (36, 3)], [WHITE, RED, GREEN], strict=True)
        assert all(near(again, at, colour, within=30) for at, colour in corners)


@pytest.mark.parametrize("notes", [b"II*\0\xff\xff\xff\xff", b"no such thing", b"", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_picture(notes: bytes) -> None:
    assert load_image(encoded(halves(), "JPEG", exif=b"Exif\0\0" + notes)).size == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGBa"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    data = image if mode in ("PA", "RGBa") else encoded(image, "PNG")
    assert near(load_image(data), (1, 1), WHITE)
    assert near(load_image(data), (6, 1), (0, 0, 0))


def test_a_transparent_colour_and_half_transparency() -> None:
    keyed = encoded(halves(), "PNG", transparency=RED)
    assert near(load_image(keyed), (5, 5), WHITE)
    assert near(load_image(keyed), (35, 5), GREEN)
    assert near(load_image(Image.new("RGBA", (4, 4), (255, 0, 0, 128))), (0, 0), (255, 127, 127))


@pytest.mark.parametrize("depth, kind", [(8, ">u1"), (16, ">u2")])
def test_a_transparent_level_of_grey(depth: int, kind: str) -> None:
    levels = np.array([0, 2**depth // 5, 2 ** (depth - 1), 2**depth - 1]).astype(kind)
    for number, expected in ((0, [255, 51, 128, 255]), (1, [0, 255, 128, 255])):
        clear = int(levels[number]).to_bytes(2, "big")
        opened = np.asarray(load_image(png(4, 1, b"\0" + levels.tobytes(), depth=depth, colour=0, clear=clear)))
        assert opened[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize("largest, expected", [(65535, [0, 0, 1]), (1000, [0, 26, 65]), (255, [0, 100, 255])])
def test_the_levels_of_a_grey_map(largest: int, expected: list[int]) -> None:
    """Those of two bytes may all be small; they are no levels of one byte then."""
    levels = np.array([0, 100, 255]).astype(">u2" if largest > 255 else ">u1")
    opened = load_image(b"P5 3 1 %d\n" % largest + levels.tobytes())
    assert np.asarray(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_colour_modes(mode: str) -> None:
    image = load_image(Image.new("RGB", (6, 4), WHITE).convert(mode))
    assert near(image, (2, 2), WHITE)
    assert near(load_image(encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG")), (2, 2), RED, within=3)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    expected = [0, 1, 128, 255]
    grey16 = Image.fromarray(levels)
    wide = Image.fromarray(levels.astype(np.int32))
    sources = [levels, grey16, wide, encoded(grey16, "PNG"), encoded(grey16, "TIFF"), encoded(wide, "TIFF")]
    sources += [levels.astype(">u2"), torch.from_numpy(levels), (levels / 65535).astype(np.float32)]
    sources += [png(4, 1, b"\0" + levels.astype(">u2").tobytes(), depth=16, colour=0)]
    for source in sources:
        assert np.asarray(load_image(source))[0, :, 1].tolist() == expected
    colour = np.repeat(levels[..., None], 3, axis=-1)
    opened = load_image(png(4, 1, b"\0" + colour.astype(">u2").tobytes(), depth=16))
    assert np.asarray(opened)[0, :, 0].tolist() == expected
    eight_bits = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))  # an L image that was made I
    assert np.asarray(load_image(eight_bits))[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_an_animation_is_refused_unless_a_frame_is_chosen(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, WHITE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    (tmp_path / "moving").write_bytes(data)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    for source in (data, tmp_path / "moving", Image.open(tmp_path / "moving"), io.BytesIO(data)):
        with pytest.raises(ImageError, match="several frames"):
            load_image(source)
    for number, colour in enumerate((RED, GREEN, WHITE)):
        assert near(load_image(data, frame=number), (8, 8), colour, within=12)
    with pytest.raises(ImageError, match=r"3 frame\(s\).*frame 3"):
        load_image(data, frame=3)
    still = encoded(frames[1], kind)
    assert near(load_image(still), (8, 8), GREEN, within=12) and near(load_image(still, frame=0), (8, 8), GREEN, 12)


def test_a_photograph_with_a_preview_is_one_picture() -> None:
    photo, preview = noise(32, 24), noise(8, 6)
    data = encoded(photo, "MPO", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert load_image(data).size == (32, 24)


def test_large_transparent_pictures_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    image = Image.fromarray(layers)
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    for strip in (1, 17, 40, 10**6):
        monkeypatch.setattr(loading, "STRIP", strip)
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(whole))


def test_arrays_and_tensors() -> None:
    image = noise(7, 5)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy())
    same = [
        array,
        array.transpose(2, 0, 1),
        tensor,
        tensor.permute(2, 0, 1),
        array / 255,
        (tensor / 255).half(),
    ]
    same += [
        array[:, ::-1][:, ::-1],
        np.asfortranarray(array),
        (tensor.permute(2, 0, 1) / 255).requires_grad_(),
    ]
    for source in same:
        assert np.array_equal(np.asarray(load_image(source)), array)
    grey = array[..., 0]
    for source in (grey, grey[..., None], grey[None], torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(load_image(source)), np.repeat(grey[..., None], 3, -1))
    four = np.dstack([array, np.full_like(grey, 0)])
    assert near(load_image(four), (2, 2), WHITE)
    assert np.array_equal(np.asarray(load_image(grey > 99))[..., 0], np.where(grey > 99, 255, 0))


def test_frames_of_images_and_videos() -> None:
    image = noise(7, 5)
    video = np.stack([np.asarray(image)] * 3)
    assert len(frames_of(image)) == 1
    assert len(frames_of([image, video[0]])) == len(frames_of(tuple(video[:2]))) == 2
    assert [load_image(frame).size for frame in frames_of(torch.from_numpy(video))] == [(7, 5)] * 3
    with pytest.raises(ImageError, match="empty"):
        frames_of([])


JPEG, PNG = encoded(noise(200, 200), "JPEG"), encoded(noise(200, 200), "PNG")
BAD_BYTES = {
    "no bytes": (b"", "empty"),
    "text": (b"not a picture at all", "20 bytes.*b'not a pi'"),
    "html": (b"<!DOCTYPE html><html></html>", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "use JPEG, PNG or WebP"),
    "postscript": (encoded(noise(8, 8), "EPS"), "not an image.*b'%!PS-Ado'"),
    "two bytes of a JPEG": (JPEG[:2], "not an image"),
    "header of a JPEG": (JPEG[:300], "cannot be read|truncated or damaged"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated or damaged"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated or damaged"),
    "half a WebP": (
        encoded(noise(200, 200), "WEBP")[:2000],
        "truncated or damaged|cannot be read|not an image",
    ),
    "a flipped byte": (PNG[:999] + bytes([PNG[999] ^ 255]) + PNG[1000:], "truncated or damaged"),
    "a bomb": (png(60_000, 60_000, b""), "too large.*3600000000"),
    "no width": (png(0, 5, b""), "cannot be read|no pixels|not an image"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes(tmp_path: Path, case: str) -> None:
    data, message = BAD_BYTES[case]
    with pytest.raises(ImageError, match=message):
        load_image(data)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=re.escape(f"'{path}'")):
        load_image(path)


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some users do; our limit stands
    with pytest.raises(ImageError, match=r"20000 x 20000.*178956970"):
        load_image(png(20_000, 20_000, b""))
    monkeypatch.setattr(loading, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match=r"PIL image.*10 x 10"):
        load_image(Image.new("L", (10, 10)))


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "fifo.png")
    cases = {
        tmp_path / "fifo.png": "fifo.png'.*regular file",
        "/dev/zero": "'/dev/zero'.*regular file",
        tmp_path: "directory",
        tmp_path / "none.png": "'.*none.png'",
        str(tmp_path / "empty.png"): "empty.png'.*empty",
        "https://example.org/cat.jpg": "'https://example.org/cat.jpg'.*URL",
        "data:image/png;base64,iVBORw0KGgo=": "URL",
        "x" * 5000: "x",
        "a\0b": "no such",
        "": "is a directory",
    }
    for source, message in cases.items():
        with pytest.raises(ImageError, match=message):
            load_image(source)


BAD_VALUES = {
    "nothing": (None, "NoneType.*PIL image, a path, bytes"),
    "a number": (7, "int is not an image"),
    "a row of levels": (
        np.zeros(9, np.uint8),
        r"\(9,\).*\(H, W\)",
    ),
    "two channels": (np.zeros((5, 6, 2), np.uint8), r"\(5, 6, 2\)"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    "no pixels in PIL": (Image.new("RGB", (0, 4)), "0 wide.*4 high"),
    "0 to 255 as floats": (
        np.full((4, 4), 200.0),
        "floats from 200 to 200.*uint8",
    ),
    "normalised": (
        torch.linspace(-2, 2, 48).view(3, 4, 4),
        "tensor .* floats from -2 to 2.*normal",
    ),
    "NaN": (np.full((4, 4, 3), np.nan), "floats from nan to nan"),
    "F": (Image.fromarray(np.full((4, 4), 9, np.float32)), r"mode F.* floats from 9 to 9"),
    "int64": (torch.full((3, 4, 4), 300), "int64 from 300 to 300.*uint8"),
    "wide levels": (Image.fromarray(np.full((4, 4), 70_000, np.int32)), r"mode I.* int32 from 70000"),
    "a batch": (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\)"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(case: str) -> None:
    value, message = BAD_VALUES[case]
    with pytest.raises(ImageError, match=message):
        load_image(value)


def test_a_closed_picture() -> None:
    image = Image.open(io.BytesIO(PNG))
    image.close()
    with pytest.raises(ImageError, match=r"PIL image.*closed"):
        load_image(image)


def test_an_upright_rgb_picture_is_not_copied() -> None:
    image = noise(9, 9)
    assert load_image(image) is image
    assert ImageProcessor.clip(8)(image).shape == (3, 8, 8)
    assert np.array_equal(np.asarray(image), np.asarray(noise(9, 9)))


def test_a_name_that_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no user, it is a file like any other."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "red").save("~nobody.png")
    assert load_image("~nobody.png").getpixel((0, 0)) == (255, 0, 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_image("~/~nobody.png").size == (4, 4)


@pytest.mark.parametrize("levels", [np.uint8, np.uint16])
def test_a_tiff_whose_level_0_is_white(levels: type) -> None:
    array = np.full((4, 4), 10 * (257 if levels is np.uint16 else 1), levels)
    content = bytearray(encoded(Image.fromarray(array), "TIFF"))
    assert load_image(bytes(content)).getpixel((0, 0)) == (10, 10, 10)
    place = int.from_bytes(content[4:8], "little")
    for entry in range(place + 2, place + 2 + 12 * int.from_bytes(content[place : place + 2], "little"), 12):
        if int.from_bytes(content[entry : entry + 2], "little") == 262:  # PhotometricInterpretation
            content[entry + 8 : entry + 12] = bytes(4)  # WhiteIsZero
    assert load_image(bytes(content)).getpixel((0, 0)) == (245, 245, 245)

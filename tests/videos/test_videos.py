"""Video files and animations: which frames are taken, and that files of every kind work or get one clear line."""

import io
import struct
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flamboyance.images import ImageError, ImageTooLargeError, load_image
from flamboyance.videos import STILL, VideoSampling, find_video, frames_of
from tests.videos.make import HEIGHT, WIDTH, grey, numbers, write_sound, write_video

ONE_A_SECOND = VideoSampling()


def shown(medium: object, sampling: VideoSampling = ONE_A_SECOND, **options: Any) -> list[Image.Image]:
    video = find_video(medium)
    assert video is not None
    return list(video.frames(sampling, **options))


def clip(path: Path, count: int = 40, **options: Any) -> Path:
    write_video(path, [grey(number) for number in range(count)], **options)
    return path


# Which frames ------------------------------------------------------------------------------------------------------


def test_one_frame_a_second_at_the_middle_of_each() -> None:
    assert VideoSampling().times(4.0, 40) == [0.5, 1.5, 2.5, 3.5]
    assert VideoSampling().times(4.4, 40) == pytest.approx([0.55, 1.65, 2.75, 3.85])


def test_of_a_long_video_as_many_frames_further_apart() -> None:
    times = VideoSampling().times(3600.0, 90_000)
    assert len(times) == 30 and times[0] == 60 and np.allclose(np.diff(times), 120)


def test_a_short_video_gives_two_frames_and_one_frame_gives_one() -> None:
    assert VideoSampling().times(0.2, 2) == pytest.approx([0.05, 0.15])
    assert VideoSampling().times(0.2, 1) == VideoSampling(frames=1).times(0.2, 9) == pytest.approx([0.1])


@given(st.floats(0.01, 1e5), st.integers(1, 10**6), st.integers(1, 40), st.floats(0.05, 60), st.integers(0, 9))
def test_times_are_in_order_and_within_the_video(
    duration: float, count: int, frames: int, rate: float, seed: int
) -> None:
    for rng in (None, np.random.default_rng(seed)):
        times = VideoSampling(frames, rate).times(duration, count, rng)
        assert 1 <= len(times) <= frames
        assert all(0 <= time <= duration for time in times) and times == sorted(times)


def test_training_draws_a_stretch_of_a_long_video_at_the_same_rate() -> None:
    drawn = [VideoSampling(8).times(20.0, 200, np.random.default_rng(seed)) for seed in range(50)]
    assert all(np.allclose(np.diff(times), 1) and len(times) == 8 for times in drawn)
    firsts = [times[0] - 0.5 for times in drawn]
    assert min(firsts) < 1 and max(firsts) > 11 and max(firsts) <= 12


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"frames": 2.5}, {"frames": True}, {"per_second": 0}])
def test_a_sampling_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*expected"):
        VideoSampling(**wrong)


# Files -------------------------------------------------------------------------------------------------------------

CONTAINERS = {
    "a.mp4": {},
    "a.mov": {},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4"},
    "h264.avi": {},  # whose frames, with references to later ones, get the stamps of other frames
    "a.ts.mp4": {"format": "mpegts"},
    "a.flv": {},
    "fragmented.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_are_those_of_their_times(name: str, tmp_path: Path) -> None:
    """40 frames, at 10 a second: those at 0.5, 1.5, 2.5 and 3.5 s; of the key frames only every seventh is one."""
    options = CONTAINERS[name]
    file = clip(tmp_path / name, **options)
    frames = shown(file)
    assert numbers(frames) == [5, 15, 25, 35]
    assert numbers(shown(file, VideoSampling(frames=8, per_second=10))) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert {frame.size for frame in frames} == {(WIDTH, HEIGHT)} and frames[0].mode == "RGB"


def test_a_video_of_many_frames_is_found_by_seeking(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [grey(number // 10) for number in range(600)], rate=20)
    assert numbers(shown(tmp_path / "a.mp4")) == [2 * number + 1 for number in range(30)]


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_frames_of_a_program_stream(codec: str, tmp_path: Path) -> None:
    """Several small frames share a time in an .mpg, and after seeking FFmpeg gives it to other ones."""
    write_video(tmp_path / "a.mpg", [grey(number) for number in range(64)], rate=25, codec=codec)
    assert numbers(shown(tmp_path / "a.mpg")) == [10, 32, 53]
    assert numbers(shown(tmp_path / "a.mpg", VideoSampling(64, 25))) == list(range(64))


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    content = clip(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a").write_bytes(content)
    assert numbers(shown(content)) == numbers(shown(tmp_path / "a")) == numbers(shown((tmp_path / "a").as_uri()))


def test_frames_that_last_differently_long(tmp_path: Path) -> None:
    """A tenth of a second each, and the last one from 0.3 to 4 s."""
    write_video(tmp_path / "a.mp4", [grey(n) for n in (1, 2, 3, 4, 5)], starts=[0, 0.1, 0.2, 0.3, 4.0])
    assert numbers(shown(tmp_path / "a.mp4")) == [4, 4, 4, 4]
    assert numbers(shown(tmp_path / "a.mp4", VideoSampling(40, 10)))[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize("turn, red", [(90, "bottom"), (-90, "top"), (180, "right")])
def test_a_rotated_video_is_upright(turn: int, red: str, tmp_path: Path) -> None:
    """The left half is red as stored; a player turns it counterclockwise by `turn` degrees."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2, 0] = 255
    write_video(tmp_path / "a.mp4", [picture] * 3, rotation=turn)
    levels = np.asarray(shown(tmp_path / "a.mp4")[0]).astype(int)[..., 0]
    assert levels.shape == ((HEIGHT, WIDTH) if turn == 180 else (WIDTH, HEIGHT))
    halves = {
        "top": levels[: len(levels) // 3], "bottom": levels[-len(levels) // 3 :],
        "left": levels[:, : levels.shape[1] // 3], "right": levels[:, -levels.shape[1] // 3 :],
    }  # fmt: skip
    assert max(halves, key=lambda side: halves[side].mean()) == red


MIRRORED = {  # the matrix in the file's header, and the corners as they are shown
    "as stored": ((1, 0, 0, 1), "RGBW"),
    "left to right": ((-1, 0, 0, 1), "GRWB"),
    "top to bottom": ((1, 0, 0, -1), "BWRG"),
    "half a turn": ((-1, 0, 0, -1), "WBGR"),
    "a quarter to the right": ((0, 1, -1, 0), "BRWG"),
    "a quarter to the left": ((0, -1, 1, 0), "GWRB"),
    "over the one diagonal": ((0, 1, 1, 0), "RBGW"),
    "over the other diagonal": ((0, -1, -1, 0), "WGBR"),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirrored_video_is_shown_as_players_show_it(name: str, tmp_path: Path) -> None:
    """As the front cameras of some telephones store it."""
    (a, b, c, d), expected = MIRRORED[name]
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    half, middle = HEIGHT // 2, WIDTH // 2
    picture[:half, :middle, 0] = picture[:half, middle:, 1] = picture[half:, :middle, 2] = picture[half:, middle:] = 255
    write_video(tmp_path / "a.mp4", [picture] * 3)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 44  # of the matrix; the numbers have 16 bits after the point, the last column 30
    assert content[at : at + 4] == b"\0\1\0\0"
    struct.pack_into(">9i", content, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (frame, *_) = shown(bytes(content))
    assert frame.size == ((WIDTH, HEIGHT) if a else (HEIGHT, WIDTH))
    x, y = (size // 8 for size in frame.size)
    corners = [(x, y), (-x, y), (x, -y), (-x, -y)]
    found = [tuple(map(bool, np.asarray(frame)[down, across] > 128)) for across, down in corners]
    colours = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True, True, True): "W"}
    assert "".join(colours[one] for one in found) == expected


def test_a_video_of_one_frame(tmp_path: Path) -> None:
    assert numbers(shown(clip(tmp_path / "a.mp4", 1))) == [0]


def test_the_middle_frame(tmp_path: Path) -> None:
    assert numbers(shown(clip(tmp_path / "a.mp4", 11), STILL)) == [5]


def damaged(content: bytes) -> bytes:
    """The same file with noise in the frames."""
    rng = np.random.default_rng(0)
    levels = np.frombuffer(content, np.uint8).copy()
    start = content.index(b"mdat") + 8
    levels[start : start + 4000] = rng.integers(0, 256, len(levels[start : start + 4000]))
    return levels.tobytes()


def noisy(path: Path, **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    write_video(path, list(rng.integers(0, 256, (20, HEIGHT, WIDTH, 3), np.uint8)), **options)
    return path.read_bytes()


def test_damaged_files_get_one_clear_line(tmp_path: Path) -> None:
    whole = noisy(tmp_path / "whole.mp4")
    indexed_first = noisy(tmp_path / "first.mp4", options={"movflags": "+faststart"})
    files = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"this is no video at all", r"not a video of a known format.*MP4"),
        "no_index.mp4": (whole[: len(whole) // 2], "truncated or damaged"),
        "cut.mp4": (indexed_first[: len(indexed_first) // 2], "truncated"),
        "noise.mp4": (damaged(whole), "damaged"),
        "head.mp4": (whole[:32], "truncated or damaged|neither"),
        "head.webm": (b"\x1a\x45\xdf\xa3" + bytes(100), "truncated or damaged|neither"),
        "head.avi": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(100), "truncated or damaged|neither"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message) as raised:
            shown(tmp_path / name)
        assert name in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ImageError, match="no such"):
        find_video(tmp_path / "none.mp4")


@pytest.mark.parametrize("before", [3, 15])
def test_a_clip_that_was_cut_without_encoding_it_again(tmp_path: Path, before: int) -> None:
    """It has frames before its start, back to the last one that can be decoded alone, which are not shown."""
    with av.open(str(clip(tmp_path / "whole.mp4", 30))) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                shift = round(before / 10 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                cut.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as cut:
        assert cut.streams.video[0].frames == 30  # in the index
    found = numbers(shown(tmp_path / "cut.mp4", VideoSampling(80, 10)))
    assert sorted(set(found)) == list(range(before, 30))


def test_a_truncated_clip_that_starts_late_is_truncated_too(tmp_path: Path) -> None:
    starts = [300 + number / 10 for number in range(60)]
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (60, HEIGHT, WIDTH, 3), np.uint8))
    write_video(tmp_path / "whole.mp4", pictures, starts=starts, options={"movflags": "+faststart"})
    whole = (tmp_path / "whole.mp4").read_bytes()
    assert len(shown(whole, VideoSampling(80, 10))) > 50
    with pytest.raises(ImageError, match=r"truncated video: it holds \d+ of the 60 frames"):
        shown(whole[: len(whole) * 6 // 10])


@pytest.mark.parametrize(
    "name, options", [("a.webm", {"codec": "libvpx"}), ("a.mkv", {}), ("a.flv", {}), ("a.avi", {"codec": "mpeg4"})]
)
def test_a_truncated_file_of_another_container(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    whole = noisy(tmp_path / name, **options)
    assert len(shown(whole, VideoSampling(80, 10))) == 20
    with pytest.raises(ImageError, match=r"truncated video: it holds \d.* of the (20 frames|2\.\d seconds)"):
        shown(whole[: len(whole) * 6 // 10])


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mkv", {"options": {"live": "1"}}),
        ("mpeg2.mkv", {"codec": "mpeg2video", "rate": 25, "options": {"live": "1"}}),
        ("a.webm", {"codec": "libvpx", "options": {"live": "1"}}),
        ("a.flv", {"options": {"flvflags": "no_duration_filesize"}}),
    ],
)
def test_a_file_recorded_live_states_no_length(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    whole = noisy(tmp_path / name, **options)
    assert len(shown(whole, VideoSampling(80, 100))) == 80
    if name != "a.flv":  # whose last frame is cut in two
        assert shown(whole[: len(whole) * 6 // 10])


def test_sound_may_last_longer_than_pictures(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.flv"):
        with av.open(str(tmp_path / name), "w") as file:
            pictures, sound = file.add_stream("libx264", rate=10), file.add_stream("aac", rate=16000)
            pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(grey(7), format="rgb24")))
            file.mux(pictures.encode())
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 160_000), np.float32), format="fltp", layout="mono")
            silence.rate = 16000
            file.mux(sound.encode(silence))
            file.mux(sound.encode())
        assert numbers(shown(tmp_path / name)) == [7]
        content = (tmp_path / name).read_bytes()
        with pytest.raises(ImageError, match="truncated"):
            shown(content[: len(content) // 2])


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.m4a.*no video in it: it holds sound alone"):
        shown(write_sound(tmp_path / "a.m4a"))


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    clip(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "hls.mp4"):
        with pytest.raises(ImageError, match="known format"):
            shown(tmp_path / name)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageTooLargeError, match="64 x 32 pixels, limit 1000"):
        shown(clip(tmp_path / "a.mp4", 3), max_pixels=1000)


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = clip(tmp_path / "a.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"a\.mp4.*PyAV: pip install 'flamboyance\[video\]'"):
        shown(file)


# Animations --------------------------------------------------------------------------------------------------------


def test_a_picture_whose_colours_look_like_a_transport_stream() -> None:
    palette = Image.new("P", (8, 8))
    palette.putpalette([ord("G")] * 768)
    content = io.BytesIO()
    palette.save(content, "GIF", optimize=False)
    assert content.getvalue()[188:189] == b"G"
    assert find_video(content.getvalue()) is None


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_a_video(kind: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(grey(number)) for number in range(10)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(
        tmp_path / "a", kind, save_all=True, append_images=pictures[1:], duration=[100] * 9 + [3100], **lossless
    )
    assert numbers(shown(tmp_path / "a")) == [5, 9, 9, 9]
    assert numbers(shown((tmp_path / "a").read_bytes(), VideoSampling(80, 10)))[:10] == list(range(10))
    with Image.open(tmp_path / "a") as opened:
        assert numbers(shown(opened)) == [5, 9, 9, 9]
    whole = (tmp_path / "a").read_bytes()
    with pytest.raises(ImageError, match=r"truncated or damaged|cannot be read"):
        [load_image(frame) for frame in frames_of(whole[: len(whole) // 2], VideoSampling(80, 10))]


def test_an_animated_png_keeps_its_palette() -> None:
    pictures = [Image.new("P", (4, 4), number) for number in range(3)]
    for picture in pictures:
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = io.BytesIO()
    pictures[0].save(data, "PNG", save_all=True, append_images=pictures[1:], duration=1000)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [frame.getpixel((0, 0)) for frame in shown(data.getvalue())] == colours
    with Image.open(data) as opened:
        assert [frame.getpixel((0, 0)) for frame in shown(opened)] == colours
        assert load_image(opened, frame=0).getpixel((0, 0)) == (255, 0, 0)


def test_transparency_of_an_animation_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    data = io.BytesIO()
    clear.save(
        data, "WEBP", save_all=True, append_images=[Image.new("RGBA", (4, 4), "red")], duration=1000, lossless=True
    )
    first, second = shown(data.getvalue())
    assert first.getpixel((0, 0)) == (255, 255, 255) and second.getpixel((0, 0)) == (255, 0, 0)


def test_pictures_are_no_videos(tmp_path: Path) -> None:
    picture = Image.fromarray(grey(3))
    for kind in ("GIF", "WEBP", "PNG", "JPEG", "AVIF", "TIFF"):
        picture.save(tmp_path / "a", kind)
        assert find_video(tmp_path / "a") is find_video((tmp_path / "a").read_bytes()) is find_video(picture) is None
    assert find_video(grey(1)) is find_video([picture]) is None
    assert list(frames_of(picture, None)) == [picture]


# Where an image is expected ----------------------------------------------------------------------------------------


def test_a_model_of_images_is_shown_the_middle_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"still images.*middle frame.*time\s+embeddings"):
        assert numbers(list(frames_of(clip(tmp_path / "a.mp4", 11), None))) == [5]


def test_an_image_is_not_read_from_a_video(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.mp4' is a video, and an image is expected here"):
        load_image(clip(tmp_path / "a.mp4", 2))


def test_frames_are_not_counted_to_refuse_an_animation() -> None:
    """15 bytes a frame: counting them takes Pillow ten seconds for 20 MB."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    data = head + frame * 1_000_000 + b";"
    began = time.process_time()
    with pytest.raises(ImageError, match="several frames"):
        load_image(data)
    assert find_video(data) is not None
    assert time.process_time() - began < 1.5


def test_frames_larger_than_the_header_says_are_not_decoded(tmp_path: Path) -> None:
    """A stream may change its size: the limit holds for what is decoded, too."""
    small = write_video(io.BytesIO(), [grey(number) for number in range(20)], format="mpegts")
    black = np.zeros((1024, 1024, 3), np.uint8)
    large = write_video(io.BytesIO(), [black] * 3, starts=[3.0, 3.1, 3.2], format="mpegts")
    (tmp_path / "grows.ts").write_bytes(small.getvalue() + large.getvalue())
    assert [frame.size for frame in shown(tmp_path / "grows.ts", VideoSampling(100, 10))][-1] == (1024, 1024)
    with pytest.raises(ImageError, match=r"grows\.ts"):
        shown(tmp_path / "grows.ts", VideoSampling(100, 10), max_pixels=100_000)
    (tmp_path / "large.ts").write_bytes(large.getvalue())
    with pytest.raises(ImageTooLargeError, match="1024 x 1024 pixels, limit 100000"):
        shown(tmp_path / "large.ts", max_pixels=100_000)

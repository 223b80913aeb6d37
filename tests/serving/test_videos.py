"""Videos in requests and tasks: the answers are the library's, and hostile files get their status and nothing else."""

import base64
import contextlib
import io
import re
import struct
import subprocess
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flamboyance import FewShotTask, FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.images import ImageError
from flamboyance.serving.fetching import Fetcher
from flamboyance.serving.limits import MEBI, Limits
from flamboyance.serving.videos import SlowVideoError, VideoDecoder
from flamboyance.videos import STILL, VideoSampling, find_video
from tests.serving.server import Running, image_part, running, text_part
from tests.tiny import save_tiny_flamingo
from tests.videos.make import grey, numbers, write_sound, write_video

LIMITS = Limits(images=4, image_bytes=MEBI, video_pixels=100_000, video_memory=512 * MEBI, frames=12)
OUTPUT = text_part("Output:")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model with four time embeddings."""
    directory = save_tiny_flamingo(tmp_path_factory.mktemp("video"), max_frames=4)
    return FlamingoForConditionalGeneration.from_pretrained(directory), FlamingoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A picture, videos of 3 and 6 s, and an animation of 2 s."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    found = {}
    for name, seconds in (("three.mp4", 3), ("six.webm", 6)):
        slides = rng.integers(0, 256, (seconds, 1, 1, 3), np.uint8)
        frames = [np.broadcast_to(slides[i // 5], (24, 32, 3)).copy() for i in range(5 * seconds)]
        write_video(folder / name, frames, 5, codec="libx264" if name.endswith("mp4") else "libvpx")
        found[name] = (folder / name).read_bytes()
    pictures = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)) for _ in range(3)]
    files = io.BytesIO(), io.BytesIO()
    pictures[0].save(files[0], "PNG")
    pictures[1].save(files[1], "GIF", save_all=True, append_images=pictures[2:], duration=1000)
    return found | {"picture.png": files[0].getvalue(), "moving.gif": files[1].getvalue()}


@pytest.fixture(scope="module")
def server(parts: tuple[Any, Any]) -> Any:
    with running(*parts, LIMITS) as one:
        yield one


def video_part(content: bytes, kind: str = "mp4") -> dict[str, Any]:
    url = f"data:video/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def said(answer: tuple[int, Any, Any]) -> str:
    status, _, content = answer
    assert status == 200, content
    return content["choices"][0]["message"]["content"]


def offline(parts: tuple[Any, Any], *media: bytes, tokens: int) -> str:
    """What the library generates after the media and "Output:"."""
    model, processor = parts
    inputs = processor("<image>" * len(media) + "Output:", list(media))
    found = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs.input_ids.shape[1] :]
    return processor.decode(found).strip()


def test_a_video_is_answered_as_by_the_library(
    server: Running, parts: tuple[Any, Any], media: dict[str, bytes]
) -> None:
    for kind, name in (("mp4", "three.mp4"), ("webm", "six.webm"), ("gif", "moving.gif")):
        expected = offline(parts, media[name], tokens=8)
        assert said(server.chat(video_part(media[name], kind), OUTPUT, max_tokens=8)) == expected
        # What a file is is known by its content, as everywhere.
        assert said(server.chat(image_part(media[name]), OUTPUT, max_tokens=8)) == expected
    mixed = ["picture.png", "six.webm", "three.mp4"]
    given = [image_part(media[mixed[0]]), video_part(media[mixed[1]], "webm"), video_part(media[mixed[2]])]
    contents = [media[name] for name in mixed]
    answer = server.chat(*given, OUTPUT, max_tokens=8, logprobs=True)
    assert said(answer) == offline(parts, *contents, tokens=8)
    [first, *_] = answer[2]["choices"][0]["logprobs"]["content"]
    model, processor = parts
    for some, close in ((contents, True), (contents[::-1], False)):
        with torch.no_grad():
            logits = model(**processor("<image>" * 3 + "Output:", some)).logits[0, -1]
        logits[model._never_generated()] = float("-inf")
        expected = float(logits.log_softmax(-1).max())
        assert (first["logprob"] == pytest.approx(expected, abs=1e-4)) is close


def test_a_video_that_was_encoded_is_not_decoded_again(
    server: Running, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(server.chat(video_part(media["three.mp4"]), OUTPUT, max_tokens=4))
    monkeypatch.setattr(server.service.pictures._decoder, "frames", None)
    assert said(server.chat(video_part(media["three.mp4"]), OUTPUT, max_tokens=4)) == first


def test_tasks_take_videos(server: Running, parts: tuple[Any, Any], media: dict[str, bytes], tmp_path: Path) -> None:
    shots = [(media["six.webm"], "a cat"), (media["picture.png"], "a dog")]
    task = FewShotTask(*parts, shots)
    [expected] = task([media["three.mp4"]], max_new_tokens=64)
    task.save(tmp_path / "task.json")  # the file that the library writes is a request
    status, _, made = server.ask("POST", "/v1/tasks", (tmp_path / "task.json").read_bytes())
    assert status == 201 and made["demonstrations"] == 2, made
    assert said(server.chat(video_part(media["three.mp4"]), model="mini:task")) == expected
    edge = uuid.uuid4().hex
    body = f'--{edge}\r\nContent-Disposition: form-data; name="name"\r\n\r\nform\r\n'.encode()
    for content, text in shots:
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode()
        field = f'\r\n--{edge}\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n'.encode()
        body += head + content + field
    body += f"--{edge}--\r\n".encode()
    status, _, made = server.ask("POST", "/v1/tasks", body, kind=f"multipart/form-data; boundary={edge}")
    assert status == 201, made
    assert said(server.chat(video_part(media["three.mp4"]), model="mini:form")) == expected
    status, _, answer = server.chat(video_part(media["three.mp4"]), image_part(media["picture.png"]), model="mini:form")
    assert status == 400 and "expected the user's with one image or video" in answer["error"]["message"]


def test_a_model_of_still_images_says_so(tmp_path: Path, media: dict[str, bytes]) -> None:
    directory = save_tiny_flamingo(tmp_path)
    model = FlamingoForConditionalGeneration.from_pretrained(directory)
    processor = FlamingoProcessor.from_pretrained(directory)
    with running(model, processor) as stills:
        demonstrations = [{"image": video_part(media["three.mp4"])["video_url"]["url"], "text": "a cat"}]
        for status, _, answer in (
            stills.chat(video_part(media["three.mp4"]), OUTPUT),
            stills.chat({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}, OUTPUT),
            stills.chat(image_part(media["moving.gif"]), OUTPUT),
            stills.ask("POST", "/v1/tasks", {"name": "x", "demonstrations": demonstrations}),
        ):
            assert status == 400 and answer["error"]["code"] == "video_not_supported", answer
            assert "one of still images; send one frame as an image" in answer["error"]["message"]
        assert stills.service.pictures._decoder._process is None, "nothing was decoded"
    processor.video = STILL  # `serve --frames 1`: the middle frame is meant
    with running(model, processor) as stills:
        expected = offline((model, processor), media["three.mp4"], tokens=4)
        assert said(stills.chat(video_part(media["three.mp4"]), OUTPUT, max_tokens=4)) == expected


# Hostile files --------------------------------------------------------------------------------------------------------


def listing(frames: int, tmp_path: Path) -> bytes:
    """An MP4 of two kilobytes whose index lists so many frames. FFmpeg makes 60 bytes of each."""
    write_video(tmp_path / "few.mp4", [grey(number) for number in range(5)])
    content = bytearray((tmp_path / "few.mp4").read_bytes())
    sizes, chunks, times = (content.index(name) for name in (b"stsz", b"stsc", b"stts"))
    content[sizes + 8 : sizes + 16] = struct.pack(">II", 1, frames)
    content[chunks + 8 : chunks + 24] = struct.pack(">IIII", 1, 1, frames, 1)
    content[times + 12 : times + 16] = struct.pack(">I", frames)
    return bytes(content)


def fragment(frames: int) -> bytes:
    """An MP4 of two kilobytes whose one fragment says that it has so many frames. FFmpeg makes 36 bytes of each."""
    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    write_video(file, [grey(number) for number in range(5)], format="mp4", options=options)
    content = bytearray(file.getvalue())
    place = content.index(b"trun")
    content[place + 4 : place + 12] = struct.pack(">II", 0, frames)
    return bytes(content)


def many_frames(count: int) -> bytes:
    """A GIF of 15 bytes for each frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + (b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * count + b";"


def test_hostile_videos_get_a_clear_status(server: Running, media: dict[str, bytes], tmp_path: Path) -> None:
    whole = media["three.mp4"]
    large = write_video(tmp_path / "large.mp4", [np.zeros((400, 400, 3), np.uint8)] * 2)
    assert isinstance(large, Path)
    files = {
        "half": (whole[: len(whole) // 2], "invalid_video", "give a file with pictures"),
        "all but the end": (media["six.webm"][:400], "invalid_video", ""),
        "a header": (b"\0\0\0\x18ftypisom" + bytes(99), "invalid_video", "damaged"),
        "sound": (write_sound(tmp_path / "a.mp4").read_bytes(), "invalid_video", "sound alone"),
        "large frames": (large.read_bytes(), "invalid_video", "400 x 400 pixels, limit 100000"),
        "an index of 5 GB": (listing(80_000_000, tmp_path), "invalid_video", ""),
        "a fragment of 2 GB": (fragment(60_000_000), "invalid_video", ""),
        "nothing": (b"", "invalid_image", "empty"),
        "text": (b"not a video", "invalid_image", "not an image"),
        "a playlist": (b"#EXTM3U\nfile:///etc/passwd\n", "invalid_image", ""),
        "too large": (whole + bytes(MEBI), "image_too_large", "1 MiB"),
    }
    for name, (content, code, words) in files.items():
        status, _, answer = server.chat(video_part(content), OUTPUT)
        found = answer["error"]
        assert (status, found["code"]) == (400, code), (name, answer)
        assert words in found["message"] and found["param"] == "messages.0.content.0.video_url.url", (name, answer)
        assert "/tmp" not in found["message"]
    for url in ("/etc/passwd", "file:///etc/passwd", "data:video/mp4,abc", "data:text/html;base64,PGI+"):
        status, _, answer = server.chat({"type": "video_url", "video_url": {"url": url}}, OUTPUT)
        assert (status, answer["error"]["code"]) == (400, "invalid_image_url"), url
    status, _, answer = server.chat({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}, OUTPUT)
    assert (status, answer["error"]["code"]) == (400, "remote_url")
    status, _, answer = server.chat(*[video_part(media["six.webm"], "webm")] * 5)
    assert status == 400 and "5 images" in answer["error"]["message"]
    assert said(server.chat(video_part(whole), OUTPUT, max_tokens=4))
    assert server.service.engine.counts.failures == 0


def test_the_frames_of_a_request_are_limited(parts: tuple[Any, Any], media: dict[str, bytes]) -> None:
    with running(*parts, Limits(frames=5)) as other:
        given = video_part(media["three.mp4"]), video_part(media["moving.gif"], "gif")
        assert said(other.chat(*given, OUTPUT, max_tokens=2))
    with running(*parts, Limits(frames=4)) as other:
        status, _, answer = other.chat(*given, OUTPUT)
        assert (status, answer["error"]["code"]) == (400, "too_many_frames"), answer
        assert said(other.chat(given[0], OUTPUT, max_tokens=2))
        assert said(other.chat(*given, OUTPUT, max_tokens=2)), "the first video is encoded already"


def test_a_video_that_takes_long_is_given_up(
    server: Running, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(server.chat(video_part(media["six.webm"], "webm"), OUTPUT, max_tokens=2))  # the process is there
    decoder = server.service.pictures._decoder
    monkeypatch.setattr(server.service, "limits", Limits())
    monkeypatch.setattr(server.service.pictures, "limits", Limits())
    monkeypatch.setattr(decoder, "seconds", 1.0)
    before, began = decoder._process, time.monotonic()
    status, _, answer = server.chat(video_part(many_frames(1_200_000), "gif"), OUTPUT)
    assert (status, answer["error"]["code"]) == (400, "video_too_slow"), answer
    assert "longer than 1 seconds to decode" in answer["error"]["message"]
    assert before is not None and before.poll() is not None and time.monotonic() - began < 30
    monkeypatch.setattr(decoder, "seconds", 60.0)
    # Another process decodes the next one: GIFs have the same frames under another name.
    assert said(server.chat(video_part(media["moving.gif"] + b"\0", "gif"), OUTPUT, max_tokens=2))
    assert decoder._process is not before


def test_remote_videos_follow_the_rules_of_images(parts: tuple[Any, Any], media: dict[str, bytes]) -> None:
    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(media["three.mp4"])

        def log_message(self, *_: Any) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    Thread(target=site.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{site.server_port}/a.mp4"
    part = {"type": "video_url", "video_url": {"url": url}}
    with running(*parts, fetch=Fetcher(Limits()).fetch) as strict:
        status, _, answer = strict.chat(part, OUTPUT)
        assert (status, answer["error"]["code"]) == (400, "forbidden_url")
    with running(*parts, fetch=Fetcher(Limits(), allowed=lambda _: True).fetch) as open_one:
        expected = offline(parts, media["three.mp4"], tokens=4)
        assert said(open_one.chat(part, OUTPUT, max_tokens=4)) == expected
    with running(*parts, fetch=Fetcher(Limits(image_bytes=99), allowed=lambda _: True).fetch) as small:
        status, _, answer = small.chat(part, OUTPUT)
        assert (status, answer["error"]["code"]) == (400, "image_too_large")
    site.shutdown()


# The process ----------------------------------------------------------------------------------------------------------


def test_frames_are_those_of_the_library(tmp_path: Path, media: dict[str, bytes]) -> None:
    path = write_video(tmp_path / "a.mp4", [grey(number) for number in range(40)])
    assert isinstance(path, Path)
    decoder = VideoDecoder(60, 100_000, 512 * MEBI)
    try:
        for sampling in (VideoSampling(), VideoSampling(16, 8), STILL):
            video = find_video(path)
            assert video is not None
            assert numbers(list(decoder.frames(path.read_bytes(), sampling))) == numbers(list(video.frames(sampling)))
        process = decoder._process
        next(decoder.frames(path.read_bytes(), VideoSampling()))  # the rest is left
        assert len(list(decoder.frames(path.read_bytes(), VideoSampling()))) == 4 and decoder._process is not process
        assert decoder._process is not None
        with pytest.raises(ImageError):
            list(decoder.frames(listing(80_000_000, tmp_path), VideoSampling()))
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{decoder._process.pid}/status").read_text(encoding="utf-8"))
        assert peak is not None and int(peak[1]) < 2_000_000, "kilobytes; 5 GB without the limit"
        decoder._process.kill()
        decoder._process.wait()
        assert len(list(decoder.frames(path.read_bytes(), VideoSampling()))) == 4
    finally:
        decoder.close()
    assert decoder._process is not None and decoder._process.poll() is not None
    with pytest.raises(SlowVideoError):
        list(VideoDecoder(0.0, 100_000, 512 * MEBI).frames(many_frames(100_000), VideoSampling()))


def test_the_process_starts_at_once() -> None:
    code = (
        "import sys, flamboyance.serving.video_process; print({'torch', 'transformers', 'fastapi'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"

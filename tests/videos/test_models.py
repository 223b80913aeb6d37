"""Videos wherever images are: the processor, the model, few-shot tasks, evaluation, the command line and training."""

import csv
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from flamboyance import FewShotTask, FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.cli import main
from flamboyance.data.batch import collate
from flamboyance.data.documents import Document, Rejected
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.loader import Loader
from flamboyance.data.shards import records
from flamboyance.evaluation.answers.media_cache import MediaCache
from flamboyance.images import ImageError, ImageProcessor
from flamboyance.images.listing import image_rows
from flamboyance.processes import World
from flamboyance.recipes import held_out
from flamboyance.recipes.training_split import TrainingSplit
from flamboyance.training.config import TrainingConfig
from flamboyance.training.features import prepare_features
from flamboyance.training.step import summed_loss
from flamboyance.videos import STILL, VideoSampling
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo
from tests.videos.make import write_video

MARK = "<image>"
FRAMES = 4  # time embeddings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("video"), max_frames=FRAMES)


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("stills"))


@pytest.fixture(scope="module")
def parts(directory: Path) -> tuple[Any, Any]:
    return FlamingoForConditionalGeneration.from_pretrained(directory), FlamingoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, videos of 3 and 6 s, and an animation of 2 s."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name, seconds in (("three.mp4", 3), ("six.mp4", 6)):
        slides = rng.integers(0, 256, (seconds, 1, 1, 3), np.uint8)
        write_video(folder / name, [np.broadcast_to(slides[i // 5], (24, 32, 3)).copy() for i in range(5 * seconds)], 5)
    pictures = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)) for _ in range(3)]
    pictures[0].save(folder / "picture.png")
    pictures[1].save(folder / "moving.gif", save_all=True, append_images=pictures[2:], duration=1000)
    return folder


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_media_of_all_lengths_in_one_call(parts: tuple[Any, Any], media: Path) -> None:
    _, processor = parts
    texts = [f"{MARK}a{MARK}b", "no image", f"{MARK}{MARK}"]
    names = ["picture.png", "three.mp4", "six.mp4", "moving.gif"]
    rows = [[media / name for name in names[:2]], [], [media / name for name in names[2:]]]
    inputs = processor(texts, rows)
    assert inputs.frame_counts.tolist() == [1, 3, 6, 2] and inputs.media_counts.tolist() == [2, 0, 2]
    assert inputs.pixel_values.shape == (12, 3, IMAGE_SIZE, IMAGE_SIZE)
    each = [processor(MARK, [media / name]).pixel_values[0, 0] for name in names]
    assert torch.equal(inputs.pixel_values, torch.cat(each))
    assert same(inputs, processor(texts, [path for row in rows for path in row]))  # a flat list
    contents = [[path.read_bytes() for path in row] for row in rows]
    assert same(inputs, processor(texts, contents))
    listed = processor(texts, rows, return_tensors=None)["pixel_values"]
    assert [[len(medium) for medium in row] for row in listed] == [[1, 3], [], [6, 2]]
    as_list = processor(MARK, [[Image.new("RGB", (9, 9))] * 3])
    assert as_list.pixel_values.shape[:3] == (1, 1, 3) and "frame_counts" not in as_list


@pytest.mark.parametrize("kind", ["forward", "generate", "score"])
def test_a_row_is_the_same_in_a_mixed_batch(kind: str, parts: tuple[Any, Any], media: Path) -> None:
    model, processor = parts
    texts = [f"{MARK}a cat{MARK}a dog", f"{MARK}what is this ?", f"{MARK}red"]
    rows = [[media / "picture.png", media / "three.mp4"], [media / "six.mp4"], [media / "picture.png"]]

    def result(some: list[int]) -> torch.Tensor:
        inputs = processor([texts[i] for i in some], [rows[i] for i in some])
        if kind == "generate":
            found = model.generate(
                **inputs, max_new_tokens=4, num_beams=2, output_logits=True, return_dict_in_generate=True
            )
            return found.sequences[:, -4:]
        if kind == "score":
            return model.score(**inputs, candidates=["cat", "red square"])
        return model(**inputs).logits[:, -2:]

    with torch.no_grad():
        assert_close(result([0, 1, 2]), torch.cat([result([0]), result([1]), result([2])]), rtol=1e-4, atol=1e-5)


def test_latents_do_not_depend_on_the_other_media(parts: tuple[Any, Any], media: Path) -> None:
    """Six frames have interpolated time embeddings; equal media are computed once, and so are equal frames."""
    model, processor = parts
    paths = [media / name for name in ("picture.png", "six.mp4", "picture.png", "three.mp4", "six.mp4")]
    inputs = processor(MARK * 5, [paths])
    with torch.no_grad():
        found = model.encode_media(inputs.pixel_values, inputs.media_counts, inputs.frame_counts)
        assert found.rows == ((0, 1, 0, 2, 1),) and len(found.latents) == 3
        for place, path in ((0, paths[0]), (1, paths[1]), (2, paths[3])):
            alone = model.encode_media(processor(MARK, [path]).pixel_values)
            assert_close(found.latents[place], alone.latents[0], rtol=1e-4, atol=1e-5)
        mirrored = inputs.pixel_values[1:7].flip(0)
        assert not torch.allclose(model.encode_media(mirrored, [1], [6]).latents[0], found.latents[1], atol=1e-3)
        in_training = model.train().encode_media(inputs.pixel_values, inputs.media_counts, inputs.frame_counts)
        model.eval()
    assert_close(in_training.latents, found.latents[[0, 1, 0, 2, 1]], rtol=1e-4, atol=1e-5)


def test_counts_that_do_not_fit_are_refused(parts: tuple[Any, Any]) -> None:
    model, _ = parts
    pixels = torch.zeros(5, 3, IMAGE_SIZE, IMAGE_SIZE)
    for given, counts, frames, message in (
        (pixels, [2], [2, 2], r"frame_counts \[2, 2\].*add up to 5"),
        (pixels, [2], [5, 0], r"frame_counts \[5, 0\].*1 or more"),
        (pixels, [1], [2, 3], r"media_counts \[1\].*add up to 2"),
        (pixels, None, [2, 3], r"media_counts \[\]"),
        (pixels[None], [2], [2, 3], "four dimensions"),
        (pixels * float("nan"), [2], [2, 3], "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_media(given, counts, frames)


def test_a_processor_knows_what_its_model_can_see(directory: Path, stills: Path, media: Path, tmp_path: Path) -> None:
    processor = FlamingoProcessor.from_pretrained(directory)
    assert processor.video == VideoSampling(30, 1.0)
    processor.video = VideoSampling(2)
    processor.save_pretrained(tmp_path)
    assert FlamingoProcessor.from_pretrained(tmp_path).video == VideoSampling(2)
    assert processor(MARK, [media / "six.mp4"]).pixel_values.shape[2] == 2
    still = FlamingoProcessor.from_pretrained(stills)
    assert still.video is None
    with pytest.warns(UserWarning, match="middle frame"):
        shown = still(MARK, [media / "six.mp4"])
    still.video = STILL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(shown, still(MARK, [media / "six.mp4"]))
    still.video = VideoSampling()  # against what the model can do
    model = FlamingoForConditionalGeneration.from_pretrained(stills)
    for paths in ([media / "six.mp4"], [media / "six.mp4", media / "picture.png"]):
        with pytest.raises(ValueError, match=r"6 frames per medium.*time embeddings"):
            model.generate(**still([MARK * len(paths)], [paths]), max_new_tokens=2)


def test_a_damaged_video_is_named_by_row_and_place(parts: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(99))
    with pytest.raises(ImageError, match=r"row 0, image 1: .*bad\.mp4"):
        parts[1](MARK * 2, [Image.new("RGB", (9, 9)), tmp_path / "bad.mp4"])


def test_few_shot_tasks_take_videos(parts: tuple[Any, Any], media: Path) -> None:
    model, processor = parts
    shots = [(media / "six.mp4", "a cat"), (str(media / "picture.png"), "a dog")]
    task = FewShotTask(model, processor, shots)
    queries = [media / "three.mp4", media / "picture.png"]
    for query, answer in zip(queries, task(queries, max_new_tokens=3), strict=True):
        text, images = task.prompt(query)
        inputs = processor([text], [images])
        found = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs.input_ids.shape[1] :]
        assert answer == task.template.parse(processor.batch_decode(found, skip_special_tokens=True)[0])
    [(label, chances), _] = task.classify(queries, ["cat", "dog"])
    assert label in chances and sum(chances.values()) == pytest.approx(1)


def test_evaluation_encodes_videos(parts: tuple[Any, Any], media: Path, tmp_path: Path) -> None:
    model, processor = parts
    table = media / "task.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), ("six.mp4", "cat"), ("picture.png", "dog")])
    paths = [row.image for row in image_rows(table)]
    inputs = processor(MARK * 2, [paths])
    expected = model.encode_media(inputs.pixel_values, inputs.media_counts, inputs.frame_counts)
    for _ in range(2):  # the second time from the disk
        cache = MediaCache(model, processor, folder=tmp_path)
        found = cache.media([paths])
        assert found.rows == ((0, 1),)
        assert_close(found.latents, expected.latents, rtol=1e-4, atol=1e-5)
    assert cache.encoded == 0
    processor.video = VideoSampling(2)
    other = MediaCache(model, processor, folder=tmp_path)
    assert not torch.equal(other.media([paths]).latents, found.latents) and other.encoded > 0
    processor.video = VideoSampling()


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_line_takes_videos(
    directory: Path, stills: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(99))
    output = tmp_path / "rows.jsonl"
    assert run("caption", media, tmp_path / "bad.mp4", "--model", directory, "--output", output) == 0
    rows = {Path(row["image"]).name: row for row in map(json.loads, output.read_text().splitlines())}
    assert {name for name, row in rows.items() if "text" in row} == {p.name for p in media.iterdir()} - {"task.csv"}
    assert "damaged" in rows["bad.mp4"]["error"]
    ask = ("ask", media / "six.mp4", "--question", "what is this ?")
    assert run(*ask, "--model", directory, "--frames", 16, "--frames-per-second", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(media / "six.mp4")
    assert run("classify", media / "six.mp4", "--labels", "cat,dog", "--model", stills, "--frames", 1) == 0
    assert run("caption", media / "six.mp4", "--model", stills, "--frames", 8) == 2
    assert "--frames 1" in capsys.readouterr().err
    assert run("caption", media / "six.mp4", "--model", directory, "--output", output, "--frames", 8) == 2
    assert "frames" in capsys.readouterr().err


# Training ------------------------------------------------------------------------------------------------------------


def documents(media: Path) -> list[Document]:
    texts = ["a red cat", "a dog", "yes", "a blue circle"]
    names = ["six.mp4", "picture.png", "three.mp4", "moving.gif"]
    return [
        Document(f"{MARK}{text}<|endofchunk|>", ((media / name).read_bytes(),), "all")
        for text, name in zip(texts, names, strict=True)
    ]


def test_training_learns_from_mixed_media(parts: tuple[Any, Any], media: Path) -> None:
    """A batch's loss is the sum of its rows' losses, whichever rows are computed together."""
    model, processor = parts
    worker = WorkerProcessor.of(processor, frames=FRAMES)
    source = UserData(shards="", batch_size=4)
    made = [make_example(one, source, worker, np.random.default_rng(1)) for one in documents(media)]
    assert [one.frame_counts for one in made] == [(4,), None, (3,), (2,)]  # 6 s: a stretch of 4
    batch = collate(made, processor.pad_token_id)
    assert batch.frame_counts == (4, 1, 3, 2) and batch.media_counts == (1, 1, 1, 1) and len(batch.images) == 10
    assert collate(made[1:2], processor.pad_token_id).frame_counts is None
    normalize, place = worker.images.normalized, torch.device("cpu")
    model.train()
    whole = summed_loss(model, batch, normalize, place)
    gradient = torch.autograd.grad(whole, model.resampler.time_embeddings)[0]
    assert (gradient != 0).any(1).all()  # of every frame
    parts_ = [summed_loss(model, batch.rows(rows), normalize, place) for rows in ([0, 3], [1], [2])]
    model.eval()
    assert_close(whole, sum(parts_))
    assert batch.rows([0, 3]).frame_counts == (4, 2)


def test_a_video_is_mirrored_as_a_whole(parts: tuple[Any, Any], media: Path) -> None:
    worker = WorkerProcessor.of(parts[1], frames=FRAMES)
    made = [
        make_example(
            documents(media)[3], UserData(shards="", batch_size=1, flip=flip), worker, np.random.default_rng(0)
        )
        for flip in (0.0, 1.0)
    ]
    assert torch.equal(made[0].images.flip(-1), made[1].images)


def test_a_model_of_images_does_not_train_on_videos(parts: tuple[Any, Any], media: Path) -> None:
    worker, source = WorkerProcessor.of(parts[1]), UserData(shards="", batch_size=1)
    with pytest.raises(Rejected, match="video, for a model of images"):
        make_example(documents(media)[0], source, worker, np.random.default_rng(0))
    assert len(make_example(documents(media)[3], source, worker, np.random.default_rng(0)).images) == 1  # a GIF's first


def test_damaged_videos_are_dropped_and_counted(parts: tuple[Any, Any]) -> None:
    worker = WorkerProcessor.of(parts[1], frames=FRAMES)
    document = Document(f"{MARK}a<|endofchunk|>", (b"\0\0\0\x18ftypisom" + bytes(99),), "all")
    with pytest.raises(Rejected, match="damaged image"):
        make_example(document, UserData(shards="", batch_size=1), worker, np.random.default_rng(0))


@pytest.mark.parametrize("form", ["jsonl", "folder", "tar"])
def test_video_and_text_pairs_are_read(form: str, media: Path, parts: tuple[Any, Any], tmp_path: Path) -> None:
    content = (media / "three.mp4").read_bytes()
    if form == "tar":
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for name, data in (("0.mp4", content), ("0.txt", b"a cat")):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
        source: Any = Pairs(shards=str(tmp_path / "0.tar"), batch_size=1)
    else:
        (tmp_path / "0.mp4").write_bytes(content)
        (tmp_path / "0.txt").write_text("a cat")
        (tmp_path / "rows.jsonl").write_text('{"image": "0.mp4", "text": "a cat"}\n')
        source = UserData(shards=str(tmp_path if form == "folder" else tmp_path / "rows.jsonl"), batch_size=1)
    loader = Loader({"a": source}, parts[1], seed=0, workers=0, frames=FRAMES)
    batch = next(loader)["a"]
    assert batch.frame_counts == (3,) and batch.images.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_processor_of_images_alone_needs_no_counts() -> None:
    """`frame_counts` is absent where all media are images, so that older code finds what it knows."""
    from tests.tiny import tiny_tokenizer

    processor = FlamingoProcessor(ImageProcessor.clip(8), tiny_tokenizer())
    assert "frame_counts" not in processor(MARK * 2, [Image.new("RGB", (9, 9))] * 2)


def test_held_out_videos_and_animations_are_measured_too(parts: tuple[Any, Any], stills: Path, media: Path) -> None:
    rows = [{"image": name, "text": "a red square"} for name in ("picture.png", "three.mp4", "moving.gif")]
    (media / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = TrainingSplit(shards=str(media / "rows.jsonl"), batch_size=1)
    found: Any = list(records(source.shards))
    assert len(held_out._exact(*parts, source, found)) == 3
    still = FlamingoForConditionalGeneration.from_pretrained(stills), FlamingoProcessor.from_pretrained(stills)
    assert len(held_out._exact(*still, source, found)) == 2  # of an animation, the first frame, as in training


def test_features_are_not_cached_of_what_moves(parts: tuple[Any, Any], media: Path, tmp_path: Path) -> None:
    """An animation would be its first frame, and a video file would be left out."""
    model, processor = parts
    for name in ("moving.gif", "three.mp4"):
        rows = [{"image": one, "text": "a red square"} for one in ("picture.png", name)]
        (media / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = UserData(shards=str(media / "some.jsonl"), batch_size=1)
        config = TrainingConfig(output=str(tmp_path / name), sources={"own": source}, steps=1, cache_features=True)
        with pytest.raises(ValueError, match=r"cache_features=true.*some\.jsonl.*moves"):
            prepare_features(model.vision, processor, config, World())

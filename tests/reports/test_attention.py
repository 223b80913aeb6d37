"""Attention maps: known ones come out, words have the tokens that write them, the embedded model looks at things."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import flamboyance as fl
from flamboyance.images import ImageProcessor
from flamboyance.mini.world.scenes import picture, scene
from flamboyance.reports.attention import AttentionMaps, _words, color, draw, draw_words
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo, tiny_tokenizer
from tests.videos.make import write_video

ORDER = (2, 0, 3, 1)  # the patch that each latent looks at


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))
    model = fl.FlamingoForConditionalGeneration.from_pretrained(directory).eval()
    return model, fl.FlamingoProcessor.from_pretrained(directory)


@torch.no_grad()
def looks_as_told(model: fl.FlamingoForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the tower, the resampler and the blocks so that latent i holds patch ORDER[i] (and itself), and so that
    every token attends to latent 0 in the first block, and to latents 1 and 2 alike in the second."""
    width, inner = 32, 16
    patches = torch.eye(4, width) * 8
    monkeypatch.setattr(model.vision, "forward", lambda pixels: patches.expand(len(pixels), -1, -1))
    resampler = model.resampler
    [layer] = resampler.layers
    resampler.latents.copy_(patches[list(ORDER)])
    reads = torch.zeros(inner, width)  # both heads (8 each) read the first four components
    for head in range(2):
        reads[head * 8 : head * 8 + 4, :4] = torch.eye(4)
    layer.attention.to_q.weight.copy_(reads)
    layer.attention.to_kv.weight.copy_(torch.cat([reads, torch.zeros(inner, width)]))
    layer.feed_forward.down.weight.zero_()  # what comes out of the resampler are its latents, normalized
    for block, latents in zip(model.blocks, ([0], [1, 2]), strict=True):
        own = block.attention
        own.norm.weight.zero_()  # the same query, whatever the text
        own.norm.bias.copy_(torch.eye(32)[0])
        query = torch.zeros(inner)
        for head in range(2):
            for latent in latents:
                query[head * 8 + ORDER[latent]] = 20.0
        own.to_q.weight.zero_()
        own.to_q.weight[:, 0] = query
        own.to_kv.weight[:inner].copy_(reads)


def test_a_model_made_by_hand_has_the_maps_that_it_was_made_for(tiny, monkeypatch):
    model, processor = tiny
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    looks_as_told(model, monkeypatch)
    grey = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "grey")
    found = fl.attention_maps(model, processor, "<image>Output:a dog", [grey], answer=" red cat")
    model.load_state_dict(kept)
    assert found.words == ["red", "cat"] and found.layers == [0, 1]
    assert found.maps.shape == (2, 2, 2, 2)
    first, second = np.zeros(4), np.zeros(4)
    first[ORDER[0]] = 1
    second[[ORDER[1], ORDER[2]]] = 0.5
    for word in range(2):
        assert_allclose(found.maps[word, 0].ravel(), first, atol=0.01)
        assert_allclose(found.maps[word, 1].ravel(), second, atol=0.01)
    assert_allclose(found.gates, np.tanh([1, 1]), rtol=1e-5)
    assert_allclose(found.feed_forward_gates, np.tanh([0.5, 0.5]), rtol=1e-5)
    assert_allclose(found.of_word(0).ravel(), (first + second) / 2, atol=0.01)
    assert_allclose(found.of_word(0, layer=1).ravel(), second, atol=0.01)
    with pytest.raises(ValueError, match=r"layer=2.*\[0, 1\]"):
        found.of_word(0, layer=2)


def test_the_maps_follow_from_the_weights_of_generation(tiny):
    """Composed here from `generate`'s own output, for the steps of each word."""
    model, processor = tiny
    images = [Image.effect_mandelbrot((20, 30), (-2, -1, 1, 1), 40 + i).convert("RGB") for i in range(2)]
    text = "<image>Output:a red cat<|endofchunk|><image>Output:"
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 2}
    options |= {"suppress_tokens": processor.tokenizer.all_special_ids}  # a random model may write nothing else
    found = fl.attention_maps(model, processor, text, images, **options)
    inputs = processor([text], [images])
    out = model.generate(**inputs, **options)
    new = out[0, inputs["input_ids"].shape[1] :]
    again = model.generate(
        **processor([text], [images]), **options, output_attentions=True, return_dict_in_generate=True
    )
    shares = model.patch_shares(inputs["pixel_values"][0])[1]
    words = processor.decode(new).split()
    assert found.words == words
    real = [place for place, token in enumerate(new.tolist()) if token not in processor.tokenizer.all_special_ids]
    for word, place in enumerate(real):
        row = int(again.beam_indices[0][place])
        for layer in range(2):
            weights = again.cross_attentions[place][layer][row, :, -1].mean(0)
            expected = weights @ shares
            assert_allclose(found.maps[word, layer].ravel(), expected / expected.sum(), rtol=1e-3, atol=1e-4)


def test_a_video_has_a_map_for_each_frame(tmp_path):
    """Composed here from the model's own output; beside an image, whose number of frames is another."""
    directory = save_tiny_flamingo(tmp_path, max_frames=4)
    model = fl.FlamingoForConditionalGeneration.from_pretrained(directory).eval()
    processor = fl.FlamingoProcessor.from_pretrained(directory)
    rng = np.random.default_rng(0)
    slides = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    clip = write_video(tmp_path / "a.mp4", [slides[number // 10] for number in range(30)])
    for images in ([clip], [Image.new("RGB", (20, 20), "red"), clip]):
        text = "<image>" * len(images) + "Output:"
        found = fl.attention_maps(model, processor, text, images, answer=" red cat")
        assert found.words == ["red", "cat"] and found.frames == 3 and found.image.size == (3 * 32, 32)
        assert found.maps.shape == (2, 2, 2, 3 * 2)
        assert_allclose(found.maps.sum((2, 3)), 1, rtol=1e-5)
        shares = model.patch_shares(processor("<image>", [clip])["pixel_values"][0])[0]  # (L, frames · patches)
        inputs = processor([text + " red cat"], [images])
        weights = model(**inputs, output_attentions=True).cross_attentions[0][0]  # of the first block: (H, T, L)
        expected = weights[:, -3].mean(0) @ shares  # the step that chose "red" is that of ":"
        expected = (expected / expected.sum()).detach().numpy().reshape(3, 2, 2)
        for frame in range(3):
            assert_allclose(found.maps[0, 0][:, 2 * frame : 2 * frame + 2], expected[frame], rtol=1e-3, atol=1e-5)
    sheet = draw_words(found, height=100)
    assert sheet.size == (300, 3 * 120), "the frames, and a row for each word"
    strip = draw(found, 0)
    assert strip.size == (3 * 448, 448)


def test_the_map_of_a_frame_does_not_shine_into_the_next():
    maps = np.zeros((1, 1, 2, 4), np.float32)
    maps[0, 0, :, 1] = 0.5  # the right edge of the first frame
    grey = Image.new("RGB", (80, 40), (128, 128, 128))
    drawn = np.asarray(draw(AttentionMaps(["dog"], maps, [0], np.ones(1), np.ones(1), grey, frames=2), 0), np.float32)
    half = drawn.shape[1] // 2
    assert drawn[:, half - 1].mean() != pytest.approx(drawn[:, half].mean(), abs=5)
    assert_allclose(drawn[:, half:], np.broadcast_to(drawn[:1, -1:], drawn[:, half:].shape))


@pytest.mark.parametrize(
    ("text", "images", "answer", "message"),
    [
        ("Output:", [], " red", "images is empty"),
        ("<image>Output:", [[Image.new("RGB", (9, 9))] * 2], " red", "time embeddings"),
        ("<image>Output:", [Image.new("RGB", (9, 9))], "", "no text"),
        (["<image>Output:"], [Image.new("RGB", (9, 9))], " red", "text is"),
    ],
)
def test_prompts_without_a_map_are_refused(tiny, text, images, answer, message):
    with pytest.raises(ValueError, match=message):
        fl.attention_maps(*tiny, text, images, answer=answer)


def test_words_are_divided_by_white_space(tiny):
    _, processor = tiny
    ids = processor.tokenizer("a red ? cat", add_special_tokens=False).input_ids
    assert _words(processor, ids) == (["a", "red", "?", "cat"], [[0], [1], [2], [3]])
    assert _words(processor, [*ids[:2], processor.eoc_token_id]) == (["a", "red"], [[0], [1]])


def test_words_of_bytes_are_whole():
    """Tokens that are single bytes: a character of two bytes is complete with its second token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    processor = fl.FlamingoProcessor(None, PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = processor.tokenizer(" grün, ünd", add_special_tokens=False).input_ids
    words, tokens = _words(processor, ids)
    assert words == ["grün,", "ünd"]
    assert tokens == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]]
    assert _words(fl.FlamingoProcessor(None, tiny_tokenizer()), []) == ([], [])


def test_a_drawing_is_bright_where_the_map_is_large():
    maps = np.full((1, 2, 4, 4), 0.01, np.float32)
    maps[0, :, 1, 2] = 0.85
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    found = AttentionMaps(["dog"], maps, [1, 3], np.array([0.5, 0.0]), np.zeros(2), grey)
    drawn = np.asarray(draw(found, 0), np.float32).sum(-1)
    side = drawn.shape[0] // 4
    cells = drawn.reshape(4, side, 4, side).mean((1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 2)
    assert cells[3, 0] < 3 * 128  # dimmed
    assert np.asarray(draw(found, 0, strength=0)).min() == np.asarray(draw(found, 0, strength=0)).max() == 128
    assert_allclose(color(np.array([[0.0], [1.0]])), [(0, 0, 4), (252, 255, 164)])
    with pytest.raises(ValueError, match=r"strength=2.*0.*1"):
        draw(found, 0, strength=2)


def test_a_sheet_has_a_drawing_for_each_word():
    maps = np.full((2, 1, 1, 2), 0.5, np.float32)
    found = AttentionMaps(["a", "dog"], maps, [0], np.ones(1), np.ones(1), Image.new("RGB", (200, 100), "white"))
    sheet = draw_words(found, height=100)
    assert sheet.size == (3 * 200 + 2 * 5, 120)
    assert sheet.getpixel((100, 50)) == (255, 255, 255) and sheet.getpixel((305, 50)) != (255, 255, 255)


def test_the_mean_of_all_blocks_counts_their_gates():
    maps = np.zeros((1, 2, 1, 2), np.float32)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = 1
    picture = Image.new("RGB", (4, 4))
    found = AttentionMaps(["dog"], maps, [0, 1], np.array([0.1, -0.3]), np.zeros(2), picture)
    assert_allclose(found.of_word(0), [[0.25, 0.75]])
    closed = AttentionMaps(["dog"], maps, [0, 1], np.zeros(2), np.zeros(2), picture)
    assert_allclose(closed.of_word(0), [[0.5, 0.5]])


def test_the_part_of_an_image_that_the_tower_sees():
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (50, 0, 150, 100))
    seen = ImageProcessor.clip(16).seen(image)
    assert seen.size == (100, 100) and seen.getcolors() == [(100 * 100, (0, 0, 255))]
    assert ImageProcessor(size=(16, 16)).seen(image).size == (200, 100)


def test_the_embedded_model_looks_at_what_it_names():
    """Of the map of the last word, which names the shape, most lies on the patches that the thing touches."""
    model, processor = fl.load_mini()
    task = fl.FewShotTask(model, processor, fl.examples.demonstrations)
    on, area = [], []
    for seed in range(8):
        drawn = scene(np.random.default_rng(seed), 1)
        [thing] = drawn.things
        found = fl.attention_maps(model, processor, *task.prompt(picture(drawn)))
        assert found.words[-2:] == [thing.color, thing.shape]
        rows, columns = np.mgrid[:8, :8] * 8 + 4
        touched = np.maximum(abs(columns - thing.x), abs(rows - thing.y)) < thing.radius + 4
        on.append(found.of_word(len(found.words) - 1)[touched].sum())
        area.append(touched.mean())
    assert np.mean(on) > 0.6, on
    assert np.mean(area) < 0.25

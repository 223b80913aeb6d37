"""Attention maps: where in the query's image or video a model looked for each word that it wrote.

Cross-attention leads to the resampler's latents, not to the image. So a map is composed of two parts:

    map(t, i) = A(t, i) · R,   divided by its sum

A(t, i) (L,) is how much token t attends to each latent in block i, the mean of its heads, at the step that chose the
token. R (L, P) is the share of each patch in each latent (`flamboyance.model.resampler.rollout`: attention rollout,
Abnar & Zuidema 2020); the patches are those of all frames of a video. A patch is what the vision tower made of it: its
features also hold some of the patches around it, which no map shows.

Shape letters: W words, N blocks, P patches, L latents, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flamboyance import checks
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.images import ImageProcessor, load_image
from flamboyance.processing import FlamingoProcessor
from flamboyance.prompting import tokens_after
from flamboyance.videos import frames_of

# Stops of matplotlib's "inferno": it is read alike by the color-blind and in print.
COLORS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
SMALLEST = 448  # pixels of a drawing's shorter side; smaller images are enlarged


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where a model looked in the last image or video of a prompt, for each word of the text after the prompt.

    Attributes:
        words: the W words, as white space divides the text.
        maps: (W, N, rows, columns) float32, for each word and block a map over the tower's patches that adds up to 1:
            the mean over the word's tokens. Of a video, the maps of its frames side by side: (W, N, rows,
            frames · columns), which add up to 1 together.
        layers: the N decoder layers that have a block before them, counted from 0.
        gates: (N,) tanh of each block's gate: the factor of what the image adds; 0 is none.
        feed_forward_gates: (N,) the same of the block's feed-forward.
        image: the part of the image that the tower sees; of a video, the frames that are shown, side by side.
        frames: of the video; 1 for an image.
    """

    words: list[str]
    maps: np.ndarray
    layers: list[int]
    gates: np.ndarray
    feed_forward_gates: np.ndarray
    image: Image.Image
    frames: int = 1

    def of_word(self, word: int, layer: int | None = None) -> np.ndarray:
        """The map (rows, columns) of a word in the block before a decoder layer; None: the mean of all blocks, weighted
        by the size of their gates."""
        maps = self.maps[word]
        if layer is not None:
            if layer not in self.layers:
                raise ValueError(f"layer={layer}: expected one with a block before it: {self.layers}")
            return maps[self.layers.index(layer)]
        weights = np.abs(self.gates)
        weights = weights if weights.sum() else np.ones_like(weights)
        return np.tensordot(weights / weights.sum(), maps, axes=1)


@torch.no_grad()
def attention_maps(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    text: str,
    images: Sequence[Any],
    *,
    answer: str | None = None,
    **generation: Any,
) -> AttentionMaps:
    """Where the model looks in the last image or video of a prompt, for each word that it generates after it.

        fl.attention_maps(model, processor, *captioner.prompt("cat.jpg"))

    Args:
        text, images: one prompt, as for the processor.
        answer: the text after the prompt; None: generated.
        generation: options of `generate`, such as max_new_tokens (default: 20) or num_beams.

    Raises:
        ValueError: the prompt has no image, or several where tokens attend to all; or there is no text after it.
        ImageError: an image or a video cannot be read.
    """
    checks.text("text", text)
    images = checks.listed("images", images, "the images of one prompt", "[image]")
    if not images:
        raise ValueError("images is empty; expected the image of each <image> of the text: an attention map shows one")
    if len(images) > 1 and not model.config.cross_attention["only_attend_immediate_media"]:
        raise ValueError(
            f"tokens attend to all {len(images)} images at a time (only_attend_immediate_media=False), and "
            "a map shows one; give a prompt of one image"
        )
    frames = [load_image(frame) for frame in frames_of(images[-1], processor.video)]
    inputs = processor([text], [[*images[:-1], frames]]).to(model.device)
    pixels: Tensor = inputs.pop("pixel_values")
    counts = inputs.pop("frame_counts", None)
    media = model.encode_media(pixels, inputs.pop("media_counts"), counts)
    prompt: Tensor = inputs["input_ids"]
    if answer is None:
        options = {"max_new_tokens": 20, "do_sample": False} | generation
        found = model.generate(**inputs, media=media, **options)[0]
    else:
        [ids] = tokens_after(processor, text, [answer])
        found = torch.cat([prompt[0], prompt.new_tensor(ids)])
    new = found[prompt.shape[1] :].tolist()
    words, tokens = _words(processor, new)
    if not words:
        raise ValueError(
            f"there is no text after the prompt: {answer if answer is not None else 'nothing was written'!r}"
        )
    # One pass over the whole text: the weights are those of the steps, and beams and samples need no care.
    out = model(input_ids=found[None, :-1], media=media, output_attentions=True, use_cache=False, logits_to_keep=1)
    last = pixels[:, -1] if counts is None else pixels[None, -len(frames) :]
    shares = model.patch_shares(last)[0]  # (L, P)
    steps = [
        weights[0, :, prompt.shape[1] - 1 :].float().mean(0).cpu() @ shares.cpu() for weights in out.cross_attentions
    ]
    maps = torch.stack(steps, dim=1)  # (new tokens, N, P)
    maps = torch.stack([maps[places].mean(0) for places in tokens])
    maps = maps / maps.sum(-1, keepdim=True)
    maps = maps.unflatten(-1, (len(frames), -1))
    rows, columns = model.vision.grid(maps.shape[-1], *last.shape[-2:])
    maps = maps.unflatten(-1, (rows, columns)).transpose(-3, -2).flatten(-2)  # (W, N, rows, frames · columns)
    return AttentionMaps(
        words,
        maps.numpy(),
        list(model.cross_attention_layers),
        _gates([block.attention_gate for block in model.blocks]),
        _gates([block.feed_forward_gate for block in model.blocks]),
        _seen(processor, frames),
        len(frames),
    )


def _gates(gates: list[Tensor]) -> np.ndarray:
    return torch.cat([gate.detach().float().cpu() for gate in gates]).tanh().numpy()


def _words(processor: FlamingoProcessor, ids: list[int]) -> tuple[list[str], list[list[int]]]:
    """The words of generated tokens, and the places of the tokens of each; special tokens belong to no word."""
    words: list[str] = []
    tokens: list[list[int]] = []
    said, waiting = "", []
    special = set(processor.tokenizer.all_special_ids)
    for place, token in enumerate(ids):
        if token in special:
            continue
        waiting.append(place)
        text = processor.decode(ids[: place + 1], skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and place + 1 < len(ids):
            continue  # the next token has the other bytes of this character
        piece = text[len(said) :]
        if not words or piece[:1].isspace() or (words[-1] and said[-1:].isspace()):
            words.append("")
            tokens.append([])
        words[-1] = (words[-1] + piece).strip()
        tokens[-1] += waiting
        said, waiting = text, []
    pairs = [(word, places) for word, places in zip(words, tokens, strict=True) if word]
    return [word for word, _ in pairs], [places for _, places in pairs]


def _seen(processor: FlamingoProcessor, frames: list[Image.Image]) -> Image.Image:
    """The parts of some frames that the tower sees, side by side: without what the preprocessing cuts off at their
    edges."""
    preprocessing = processor.image_processor
    seen = [preprocessing.seen(frame) if isinstance(preprocessing, ImageProcessor) else frame for frame in frames]
    if len(seen) == 1:
        return seen[0]
    width, height = seen[0].size
    strip = Image.new("RGB", (width * len(seen), height))
    for place, frame in enumerate(seen):
        strip.paste(frame if frame.size == seen[0].size else frame.resize((width, height)), (width * place, 0))
    return strip


# Drawing ------------------------------------------------------------------------------------------------------------


def draw(found: AttentionMaps, word: int, layer: int | None = None, strength: float = 0.7) -> Image.Image:
    """The image with the map of a word over it: bright where the model looked, the image itself dimmed elsewhere.

    Colors run from black over red to yellow, which is the map's largest value.

    Args:
        word: its place in `found.words`.
        layer: as in `AttentionMaps.of_word`.
        strength: of the colors, from 0 (the image alone) to 1 (the map alone where it is largest).
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: expected a number from 0 (the image alone) to 1")
    picture = enlarged(found.image)
    heat = found.of_word(word, layer)
    heat = (heat / max(heat.max(), 1e-12) * 255).astype(np.uint8)
    size = picture.width // found.frames, picture.height
    # Frame by frame: what is at the edge of one does not shine into the next.
    parts = [Image.fromarray(part).resize(size, Image.Resampling.BICUBIC) for part in np.split(heat, found.frames, 1)]
    value = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts], axis=1)[..., None] / 255
    opacity = strength * value
    dimmed = np.asarray(picture, dtype=np.float32) * (1 - strength * 0.6 * (1 - value))
    return Image.fromarray((dimmed * (1 - opacity) + color(value) * opacity).round().astype(np.uint8))


def draw_words(found: AttentionMaps, layer: int | None = None, height: int = 200) -> Image.Image:
    """The image, and beside it a drawing for each word, with the word below; of a video, one below the other.

    Args:
        layer: as in `AttentionMaps.of_word`.
        height: of each drawing, in pixels.
    """
    pictures = [enlarged(found.image), *(draw(found, word, layer) for word in range(len(found.words)))]
    width, gap, font = round(found.image.width * height / found.image.height), height // 20, height // 10
    across, down = (1, len(pictures)) if found.frames > 1 else (len(pictures), 1)
    sheet = Image.new("RGB", ((width + gap) * across - gap, (height + 2 * font) * down), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, word) in enumerate(zip(pictures, ["", *found.words], strict=True)):
        left, top = (width + gap) * (place % across), (height + 2 * font) * (place // across)
        sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        pen.text(
            (left + width // 2, top + height + font // 3), word, "black", ImageFont.load_default(font), anchor="ma"
        )
    return sheet


def color(value: np.ndarray) -> np.ndarray:
    """Values from 0 to 1, (…, 1) -> their colors (…, 3), from 0 to 255."""
    stops = np.linspace(0, 1, len(COLORS))
    return np.concatenate([np.interp(value, stops, [stop[i] for stop in COLORS]) for i in range(3)], axis=-1)


def enlarged(image: Image.Image) -> Image.Image:
    """The image, with SMALLEST pixels on its shorter side or more; pixels of small images stay sharp."""
    times = -(-SMALLEST // min(image.size))
    return image if times < 2 else image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)

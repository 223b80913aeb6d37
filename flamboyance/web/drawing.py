"""The page's figures as HTML: answers, bars of chances, attention maps and gates. All texts are escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from flamboyance.reports.attention import AttentionMaps, draw
from flamboyance.web.answers import Side

WIDTH = 300  # pixels of a heat map
MOST_FRAMES = 8  # as wide as so many heat maps are those of a video's frames together, at most


def message(text: str) -> str:
    """An error in words, or nothing."""
    return f'<div class="message" role="alert">{html.escape(text)}</div>' if text else ""


def sides(found: Sequence[Side], layer: int | None) -> str:
    """A card for each answer."""
    if not found:
        return (
            '<div class="empty"><p>The answer appears here.</p><p>Add demonstrations and a query, or take an example, '
            "and run.</p></div>"
        )
    cards = "".join(_card(side, layer) for side in found)
    return f'<div class="cards count-{len(found)}">{cards}</div>'


def _card(side: Side, layer: int | None) -> str:
    state = f'<span class="state">{html.escape(side.state)}</span>' if side.state else ""
    parts = [f"<header><h3>{html.escape(side.title)}</h3>{state}</header>"]
    said = html.escape(side.answer) or ("&hellip;" if side.state else "(nothing)")
    parts.append(f'<p class="answer" aria-live="polite">{said}</p>')
    if side.chances:
        parts.append("<h4>Answers to choose from</h4>" + bars(side.chances))
    if side.maps is not None:
        parts += ["<h4>Where each word looked</h4>", words(side.maps, layer), "<h4>Gates</h4>", gates(side.maps)]
    return f'<section class="card">{"".join(parts)}</section>'


def bars(chances: dict[str, float]) -> str:
    """A bar for each answer and its probability."""
    rows = "".join(
        f'<li><span class="label">{html.escape(label)}</span><span class="track"><span class="bar" '
        f'style="width:{chance:.1%}"></span></span><span class="value">{chance:.1%}</span></li>'
        for label, chance in chances.items()
    )
    return f'<ol class="bars">{rows}</ol>'


def words(maps: AttentionMaps, layer: int | None) -> str:
    """The image with the heat map of each word; of a video, its frames side by side."""
    layer = layer if layer in maps.layers else None
    width = WIDTH * min(maps.frames, MOST_FRAMES)
    figures = "".join(
        f'<figure><img src="{_picture(draw(maps, place, layer), width)}" alt="where the model looked for '
        f'&ldquo;{html.escape(word)}&rdquo;"><figcaption>{html.escape(word)}</figcaption></figure>'
        for place, word in enumerate(maps.words)
    )
    return f'<div class="words{" video" if maps.frames > 1 else ""}">{figures}</div>'


def _picture(image: Image.Image, width: int = WIDTH) -> str:
    image.thumbnail((width, width))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(image: Image.Image, name: str) -> str:
    """A demonstration's image."""
    image = image.resize((128, 128), Image.Resampling.NEAREST) if max(image.size) < 128 else image.copy()
    return f'<img class="thumbnail" src="{_picture(image)}" alt="{html.escape(name)}">'


def gates(maps: AttentionMaps) -> str:
    """How much each block adds: a bar per layer, to the left for a negative gate."""
    largest = max(0.01, float(abs(maps.gates).max()))
    rows = []
    for layer, gate in zip(maps.layers, maps.gates, strict=True):
        width = abs(float(gate)) / largest * 50
        side = "right:50%" if gate < 0 else "left:50%"
        rows.append(
            f'<li><span class="label">layer {layer}</span><span class="track middle"><span class="bar" '
            f'style="width:{width:.1f}%;{side}"></span></span><span class="value">{gate:+.2f}</span></li>'
        )
    return f'<ol class="bars gates">{"".join(rows)}</ol>'


def header(models: Sequence[str]) -> str:
    """The page's title, and the models behind it."""
    badges = "".join(f'<span class="badge">{html.escape(name)}</span>' for name in models)
    return (
        '<div class="masthead"><div><h1>Flamboyance</h1><p>Show a model a few images with their texts, and it does the '
        f'same for the next image.</p></div><div class="badges">{badges}</div></div>'
    )

"""One HTML file with samples of a source as the model would see them; it opens offline."""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from flamboyance.data.batch import TrainingExample
from flamboyance.data.examples import IGNORED, WorkerProcessor
from flamboyance.data.survey import Survey
from flamboyance.files import write_text

STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
section { border-top: 1px solid #ccc; padding: 1rem 0; }
h2 { font-size: 0.9rem; font-weight: normal; color: #666; margin: 0 0 .5rem; word-break: break-all; }
img { vertical-align: middle; height: 112px; margin: 2px; border: 2px solid #888; image-rendering: auto; }
.learned { background: #d8ecd4; }
.read { color: #777; }
.mark { font: 11px monospace; color: #555; border: 1px solid #bbb; border-radius: 3px; padding: 0 3px; }
sup { color: #a33; font-size: 10px; }
"""


def write_page(path: Path, found: Survey, worker: WorkerProcessor, title: str) -> None:
    """Writes the page of `found.samples`, whole or not at all.

    Pictures are resized and cropped as for the tower, a video's frames stand side by side, and the text is that of the
    tokens: marked where it is predicted, with the number of the image that it attends to.
    """
    sections = "".join(
        f"<section><h2>{escape(key)}: {len(example.input_ids)} tokens</h2><p>{_written(example, worker)}</p></section>"
        for key, example in found.samples
    )
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p>{len(found.samples)} of "
        f'{found.documents:,} documents, as the model would see them. <span class="learned">Marked</span> text is '
        'predicted, <span class="read">grey</span> text is only read. A red number is the image that the text after it '
        f"attends to; 0 is none.</p>{sections}</body></html>\n",
    )


def _written(example: TrainingExample, worker: WorkerProcessor) -> str:
    counts = example.frame_counts or (1,) * len(example.images)
    media = [example.images[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
    tokens: list[tuple[bool, int, bool, int]] = []  # is an image, the image that it sees, is predicted, id
    listed = zip(example.input_ids.tolist(), example.labels.tolist(), example.images_seen.tolist(), strict=True)
    for token, label, image in listed:
        if label not in (IGNORED, token):  # the end of an answer, which is learned where the text has a line break
            tokens.append((False, image, True, label))
        tokens.append((token == worker.image_token_id, image, label == token, token))
    shown, parts, attended = 0, [], None
    for (is_image, image, predicted), run in groupby(tokens, key=lambda token: token[:3]):
        ids = [token[3] for token in run]
        if is_image:
            for _ in ids:
                parts.append("".join(map(_picture, media[shown])))
                shown += 1
            continue
        if image != attended:
            parts.append(f"<sup>{image}</sup>")
            attended = image
        parts.append(_text(worker, ids, predicted))
    return "".join(parts)


def _text(worker: WorkerProcessor, ids: list[int], predicted: bool) -> str:
    text = escape(worker.tokenizer.decode(ids, skip_special_tokens=False)).replace("\n", "↵<br>")
    for token in worker.tokenizer.all_special_tokens:
        text = text.replace(escape(token), f'<span class="mark">{escape(token)}</span>')
    return f'<span class="{"learned" if predicted else "read"}">{text}</span>'


def _picture(levels: Tensor) -> str:
    """An image element of uint8 (3, H, W)."""
    picture: Any = Image.fromarray(levels.permute(1, 2, 0).numpy())
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'

"""What a model has learned of a user's own data, measured on the documents that are held out."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flamboyance.data.documents import Document, Record
from flamboyance.data.formats.conversations import is_dialogue
from flamboyance.data.formats.user_data import read_record
from flamboyance.few_shot import FewShotTask
from flamboyance.images import load_image
from flamboyance.recipes.training_split import TrainingSplit, documents, read_digests
from flamboyance.recipes.validation import mean_loss
from flamboyance.templates import IMAGE_TOKEN, Template
from flamboyance.videos import find_video

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

BATCH = 16


def evaluate(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit
) -> dict[str, float]:
    """ "loss": the mean over the tokens of the held-out documents; "exact": the fraction of their texts that the model
    generates word for word, of the documents that are one image with a text, or with a question and its answer."""
    held_out = _held_out(source, read_digests(source.held_out))
    figures = {"loss": mean_loss(model, processor, source, [document for _, document in held_out])}
    correct = _exact(model, processor, source, [record for record, _ in held_out])
    return figures | ({"exact": float(np.mean(correct))} if correct else {})


@lru_cache(maxsize=1)  # reads all of the data; called several times in a run
def _held_out(source: TrainingSplit, _: frozenset[str]) -> list[tuple[Record, Document]]:
    return documents(source, True)


def _exact(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit, held_out: list[Record]
) -> list[bool]:
    by_template: dict[Template, list[tuple[tuple[Any, ...], str]]] = {}  # queries and their answers
    for record in held_out:
        content, images = read_record(record, source.outside)
        if len(images) != 1 or IMAGE_TOKEN in str(content.get("text", "")) or is_dialogue(content):
            continue
        template, (*fields, answer) = source.template_values(content)
        try:
            template.query(*fields)
        except ValueError:  # texts that form a special token where they meet
            continue
        by_template.setdefault(template, []).append(((images[0], *fields), answer))
    correct = []
    for template, rows in by_template.items():
        longest = max(len(processor.tokenizer(template.completion(answer)).input_ids) for _, answer in rows)
        task = FewShotTask(model, processor, (), template.keeping(answer for _, answer in rows))
        for start in range(0, len(rows), BATCH):  # hundreds of whole photographs or videos do not fit into memory
            queries, answers = [], []
            for (content, *fields), answer in rows[start : start + BATCH]:
                try:
                    image = processor.prepare(_medium(content, processor, source.max_pixels))
                except ValueError:  # it cannot be decoded
                    continue
                queries.append((image, *fields))
                answers.append(answer)
            if queries:
                generated = task(queries, max_new_tokens=longest + 1, batch_size=BATCH)
                correct += [_words(text) == _words(answer) for text, answer in zip(generated, answers, strict=True)]
    return correct


def _medium(content: bytes, processor: FlamingoProcessor, max_pixels: int | None) -> Any:
    """A picture, or the frames of what moves. A model of still images is shown the first one, as in training.

    Raises:
        ImageError: it cannot be decoded, or is a video file for a model of still images.
    """
    video = find_video(content)
    if video is None or processor.video is None:
        return load_image(content, max_pixels=max_pixels, frame=0)
    return list(video.frames(processor.video, max_pixels))


def _words(text: str) -> list[str]:
    return text.lower().split()

"""CIDEr-D of captions: how well a caption agrees with the consensus of its references (arXiv:1411.5726)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from flamboyance import checks
from flamboyance.evaluation.metrics.ptb.tokenizer import ptb_tokenize_all

Id = TypeVar("Id", bound=Hashable)

LONGEST = 4  # n-grams of 1 to 4 tokens, averaged
SIGMA = 6.0  # of the Gaussian penalty on the difference of lengths
SCALE = 10.0  # the papers' factor


def cider(references: Mapping[Id, Sequence[str]], predictions: Mapping[Id, str]) -> tuple[float, dict[Id, float]]:
    """CIDEr-D as COCO's caption evaluation (pycocoevalcap) computes it: equations 2 to 4 of the paper and section 6.

    An n-gram weighs tf x idf: its count, times log(N / number of images whose references hold it), N the number of
    images given. So a score depends on which images are scored together, and one image alone always scores 0.

    Args:
        references: for each image the captions that people wrote; the prediction is compared with each of them.
        predictions: for each of these images one caption.

    Returns:
        The mean over images, and each image's score; neither is multiplied by 100.

    Raises:
        ValueError: the two hold different images, or none, or an image has no reference; or a type is wrong.
    """
    _check(references, predictions)
    images = list(references)
    said = dict(zip(predictions, ptb_tokenize_all(list(predictions.values())), strict=True))
    written = ptb_tokenize_all([caption for image in images for caption in references[image]])
    tokens = [caption.split() for caption in [*(said[image] for image in images), *written]]
    counts = [len(references[image]) for image in images]
    owner = np.concatenate([np.arange(len(images)), np.repeat(np.arange(len(images)), counts)])
    scores = _scores(tokens, owner, len(images))
    return float(scores.mean()), dict(zip(images, scores.tolist(), strict=True))


def _check(references: Mapping, predictions: Mapping) -> None:
    for name, given in (("references", references), ("predictions", predictions)):
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} is {checks.brief(given)}; expected a dictionary with an entry per image")
    if not references:
        raise ValueError("references is empty; expected at least one image with its captions")
    without = [image for image in references if image not in predictions]
    unknown = [image for image in predictions if image not in references]
    if without or unknown:
        raise ValueError(
            "references and predictions hold different images; without a prediction: "
            f"{len(without)} {without[:5]}; without references: {len(unknown)} {unknown[:5]}"
        )
    for image, captions in references.items():
        if not checks.listed(f"references[{image!r}]", captions, "captions", "['a cat']"):
            raise ValueError(f"references[{image!r}] is empty; expected one caption or more")
        for caption in captions:
            checks.text(f"a caption of references[{image!r}]", caption)
        checks.text(f"predictions[{image!r}]", predictions[image])


def _scores(tokens: list[list[str]], owner: np.ndarray, images: int) -> np.ndarray:
    """CIDEr-D of the first `images` captions, each against the other captions of the same image.

    Args:
        tokens: of each caption: the predictions in the images' order, then the references.
        owner: (captions,) the image that each caption is of.
        images: how many images.

    Returns:
        (images,) scores.
    """
    lengths = np.array([len(caption) for caption in tokens])
    # The script compares numbers of bigrams, not of tokens: a caption of one word has length 0.
    bigrams = np.maximum(lengths - 1, 0)
    penalty = np.exp(-((bigrams[owner] - bigrams) ** 2) / (2 * SIGMA**2))
    similarity = sum(_cosines(*counted, owner, images) for counted in _ngrams(tokens, lengths)) / LONGEST * penalty
    references = slice(images, None)
    sums = np.bincount(owner[references], weights=similarity[references], minlength=images)
    return SCALE * sums / np.bincount(owner[references], minlength=images)


def _ngrams(tokens: list[list[str]], lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For n from 1 to LONGEST: (caption, n-gram, count) for each n-gram of each caption, sorted by the first two.

    An n-gram is a number, made of the number of its first n-1 tokens and the number of its last token.
    """
    numbers: dict[str, int] = {}
    token = np.array([numbers.setdefault(word, len(numbers)) for words in tokens for word in words], dtype=np.int64)
    caption = np.repeat(np.arange(len(tokens)), lengths)
    start, gram = np.arange(len(token)), token
    for n in range(1, LONGEST + 1):
        if n > 1:
            inside = start + n - 1 < len(token)
            inside[inside] = caption[start[inside] + n - 1] == caption[start[inside]]
            start, gram = start[inside], gram[inside]
            gram = np.unique(gram * len(numbers) + token[start + n - 1], return_inverse=True)[1]
        grams = int(gram.max(initial=0)) + 1
        held, count = np.unique(caption[start] * grams + gram, return_counts=True)
        yield held // grams, held % grams, count


def _cosines(caption: np.ndarray, gram: np.ndarray, count: np.ndarray, owner: np.ndarray, images: int) -> np.ndarray:
    """(captions,): for each reference the cosine of its tf-idf vector with that of its image's prediction.

    As in CIDEr-D, an n-gram that the prediction holds more often than the reference counts only as often as there.
    """
    grams = int(gram.max(initial=0)) + 1
    of_reference = caption >= images
    # Document frequency: the number of images with the n-gram in any reference; at least 1.
    per_image = np.unique(owner[caption[of_reference]] * grams + gram[of_reference])
    frequency = np.bincount(per_image % grams, minlength=grams)
    weight = count * (np.log(images) - np.log(np.maximum(frequency, 1)))[gram]
    norm = np.sqrt(np.bincount(caption, weights=weight**2, minlength=len(owner)))

    # The same n-gram in the prediction, which is caption number `owner`; if it is missing there, its weight is 0.
    predicted = (caption * grams + gram)[~of_reference]
    wanted = owner[caption[of_reference]] * grams + gram[of_reference]
    place = np.minimum(np.searchsorted(predicted, wanted), max(len(predicted) - 1, 0))
    found = predicted[place] == wanted if len(predicted) else np.zeros(len(wanted), dtype=bool)
    shared, own = weight[~of_reference][place[found]], weight[of_reference][found]
    dot = np.bincount(caption[of_reference][found], weights=np.minimum(shared, own) * own, minlength=len(owner))
    product = norm * norm[owner]
    return np.divide(dot, product, out=np.zeros(len(owner)), where=product > 0)

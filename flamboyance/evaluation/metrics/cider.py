"""CIDEr-D of captions: how much a caption says what its references agree on (Vedantam et al., arXiv:1411.5726)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

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
        references: captions of each image, as people wrote them; a prediction is compared with each.
        predictions: a caption for each of the same images.

    Returns:
        The mean over images, and each image's score; not yet times 100.

    Raises:
        ValueError: the two hold different images, or none, or an image has no reference.
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
    if not references:
        raise ValueError("CIDEr has nothing to compare: no image with references was given.")
    without = [image for image in references if image not in predictions]
    unknown = [image for image in predictions if image not in references]
    if without or unknown:
        raise ValueError(
            "CIDEr needs one prediction for every image that has references, and no others; "
            f"without a prediction: {len(without)} {without[:5]}; without references: {len(unknown)} {unknown[:5]}."
        )
    for image, captions in references.items():
        if isinstance(captions, str):
            raise ValueError(f"The references of image {image!r} are one string; give a list of captions.")
        if not captions:
            raise ValueError(f"Image {image!r} has no reference caption to compare its prediction with.")


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
    # The length that the script compares is the number of bigrams: a caption of one word has none.
    bigrams = np.maximum(lengths - 1, 0)
    penalty = np.exp(-((bigrams[owner] - bigrams) ** 2) / (2 * SIGMA**2))
    similarity = sum(_cosines(*counted, owner, images) for counted in _ngrams(tokens, lengths)) / LONGEST * penalty
    references = slice(images, None)
    sums = np.bincount(owner[references], weights=similarity[references], minlength=images)
    return SCALE * sums / np.bincount(owner[references], minlength=images)


def _ngrams(tokens: list[list[str]], lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For n from 1 to LONGEST: (caption, n-gram, count) of what n-grams each caption holds, sorted by the first two.

    An n-gram is a number, made of the number of its first n-1 tokens and of that of its last.
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
    """(captions,) of every reference: its tf-idf vector's cosine with its image's prediction, clipped as CIDEr-D does.

    Clipped: an n-gram that the prediction says more often than the reference counts as often as there.
    """
    grams = int(gram.max(initial=0)) + 1
    of_reference = caption >= images
    # Document frequency: images with the n-gram in any reference. One in no reference counts as in one image.
    per_image = np.unique(owner[caption[of_reference]] * grams + gram[of_reference])
    frequency = np.bincount(per_image % grams, minlength=grams)
    weight = count * (np.log(images) - np.log(np.maximum(frequency, 1)))[gram]
    norm = np.sqrt(np.bincount(caption, weights=weight**2, minlength=len(owner)))

    # The same n-gram in the prediction, which is caption number `owner`: where it is missing, its weight is 0.
    predicted = (caption * grams + gram)[~of_reference]
    wanted = owner[caption[of_reference]] * grams + gram[of_reference]
    place = np.minimum(np.searchsorted(predicted, wanted), max(len(predicted) - 1, 0))
    found = predicted[place] == wanted if len(predicted) else np.zeros(len(wanted), dtype=bool)
    shared, own = weight[~of_reference][place[found]], weight[of_reference][found]
    dot = np.bincount(caption[of_reference][found], weights=np.minimum(shared, own) * own, minlength=len(owner))
    product = norm * norm[owner]
    return np.divide(dot, product, out=np.zeros(len(owner)), where=product > 0)

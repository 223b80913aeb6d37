"""Models by name, for the command line."""

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from flamboyance import catalog
from flamboyance.catalog import MINI as MINI


def load(name: str, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """The model and its processor, ready to answer.

    Args:
        name: `mini` for the embedded model, a directory, or a released model's name.
        device: `cpu`, `cuda`, `mps`, or `auto` for CUDA where there is one.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is bfloat16 on CUDA and float32 on a CPU.

    Raises:
        ValueError: a device was asked for that is not here.
        OSError: no such model.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # the command's own bar counts images
    place = device_of(device)
    kind = dtype_of(dtype, place)
    model, processor = catalog.resolve(name).open(dtype=kind)
    return model.to(device=place, dtype=kind).eval().pack(), processor


def model_name(arguments: argparse.Namespace) -> str:
    """The model that was asked for; the embedded one by default."""
    return arguments.model or MINI


def note_default() -> None:
    """One line on the error stream: the embedded model was not asked for by name."""
    print(
        "flamboyance: no --model is given: using mini, the embedded model, which knows small drawn scenes and digits "
        "and nothing else",
        file=sys.stderr,
    )


SHOWN = 10  # words


def note_unknown_words(model: str, processor: Any, texts: dict[str, list[str]]) -> None:
    """One line on the error stream about words of the user's texts that the model cannot tell from each other.

    `texts`: by where they are from, as {"labels": ["cat", "dog"]}.
    """
    parts = []
    for source, some in texts.items():
        if unknown := unknown_words(processor, some):
            more = f" and {len(unknown) - SHOWN} others" if len(unknown) > SHOWN else ""
            parts.append(f"{', '.join(unknown[:SHOWN])}{more} ({source})")
    if parts:
        known = "; mini knows 150 words, which its card lists" if catalog.resolve(model).embedded else ""
        print(
            f"flamboyance: warning: the tokenizer of {model} does not know {'; '.join(parts)}: to the model they are "
            f"all one unknown word{known}",
            file=sys.stderr,
        )


def unknown_words(processor: Any, texts: Iterable[str]) -> list[str]:
    """The words of texts that hold what the tokenizer has no token for; none by tokenizers that spell words out."""
    unknown = processor.tokenizer.unk_token_id
    words = list(dict.fromkeys(word for text in texts for word in re.findall(r"\w+(?:['’-]\w+)*", text)))
    if unknown is None or not words:
        return []
    ids = processor.tokenizer(words, add_special_tokens=False).input_ids
    return [word for word, found in zip(words, ids, strict=True) if unknown in found]


def dtype_of(name: str, device: Any) -> Any:
    """torch's dtype; `auto` is bfloat16 on CUDA and float32 on a CPU."""
    import torch

    return getattr(torch, name if name != "auto" else "bfloat16" if device.type == "cuda" else "float32")


def is_flamingo(name: str) -> bool:
    """Whether a model is opened by this package, not one of transformers' own.

    Raises:
        OSError: there is no such model.
    """
    return catalog.resolve(name).is_flamingo()


def device_of(name: str) -> Any:
    """torch's device; `auto` is CUDA where there is one.

    Raises:
        ValueError: a device was asked for that is not here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps, but torch sees no Apple GPU here; use --device cpu")
    return torch.device(name)


def tower_of(name: str) -> tuple[dict[str, Any], Any]:
    """The spec of a Flamingo's tower, its name as it is found from here; and how the model prepares images.

    Nothing is opened but the configuration.
    """
    return catalog.resolve(name).tower()


Gates = list[tuple[float, float]]
"""Of each block: the attention's gate and the feed-forward's, before tanh."""


def outline(name: str) -> tuple[Any, Gates | None]:
    """A model to look at, and its gates if its weights are on this machine.

    Released models and directories are built without backbone weights (on the meta device), so nothing is
    downloaded, and a large model takes no memory.
    """
    import torch

    from flamboyance.checkpoints.directory import WEIGHTS, read_weights
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.model.adapters import canonical

    entry = catalog.resolve(name)
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(entry.config())
    if entry.kind == "released":
        return model, None
    trained = {canonical(tensor): value for tensor, value in read_weights(entry.files() / WEIGHTS)[0].items()}
    return model.to(trained["resampler.latents"].dtype), _gates(trained, len(model.cross_attention))


def _gates(tensors: Any, blocks: int) -> Gates:
    kinds = ("attention_gate", "feed_forward_gate")
    pairs = [[float(tensors[f"cross_attention.{i}.{kind}"]) for kind in kinds] for i in range(blocks)]
    return [(attention, feed_forward) for attention, feed_forward in pairs]

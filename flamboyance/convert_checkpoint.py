"""Converts an OpenFlamingo checkpoint to a model directory."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from flamboyance.checkpoints import openflamingo, released
from flamboyance.checkpoints.directory import absolute, warn_if_shut, write_checkpoint
from flamboyance.checkpoints.openflamingo import Checkpoint
from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.hub import options as reachable
from flamboyance.processing import FlamingoProcessor


def convert_file(
    source: str | Path,
    target_dir: str | Path,
    model: str | None = None,
    language: str | None = None,
    vision: str | None = None,
    tokenizer: str | None = None,
    *,
    decoder_layers: str | None = None,
    freeze_lm_embeddings: bool = False,
    **hub: Any,
) -> Path:
    """Writes the trained tensors as safetensors, a configuration that names the backbones, and the processor's files.

    The checkpoint of a released model is checked against its architecture: no weights of its backbones are read. If
    its tokenizer cannot be reached, a warning says how to add it to the directory.

    Args:
        source: OpenFlamingo's `.pt` file, released or trainer-made.
        target_dir: created if missing; files of the same names are replaced.
        model: the released model that the file belongs to; None: recognized by its layout.
        language, vision: hub ids or directories of the backbones. Required unless the model is a released one; for
            that, names for the configuration in place of the hub ids.
        tokenizer: hub id or directory, if it is not the language model's.
        decoder_layers: dotted name of the language model's list of layers, if it cannot be found.
        freeze_lm_embeddings: the file was trained with this option, and has no embedding table.
        hub: cache_dir, local_files_only.

    Returns:
        target_dir.

    Raises:
        ValueError: the file is damaged, or fits no model, several, or another one than `model`.
    """
    target = Path(target_dir)
    if target.is_file():
        raise ValueError(f"{target} is a file; expected a directory to write to")
    checkpoint = openflamingo.read(source)
    if model is None and language is not None and vision is not None:
        options = {"decoder_layers": decoder_layers, "freeze_lm_embeddings": freeze_lm_embeddings, **hub}
        _with_backbones(checkpoint, target, vision, language, tokenizer or language, options)
    else:
        model = model or _identify(source, checkpoint)
        _released(checkpoint, target, model, vision, language, tokenizer, hub)
    return target


def _identify(source: str | Path, checkpoint: Checkpoint) -> str:
    """The released model that a checkpoint belongs to."""
    names = checkpoint.released_models()
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(
            f"{source} has the layout of {' and of '.join(names)}; they differ in their language models, which the "
            f"file does not name. Give one: model={names[0]!r} or {names[1]!r} (--model on the command line)."
        )
    raise ValueError(
        f"{source} is none of the released checkpoints. {checkpoint} Give the backbones that it was trained with: "
        "language= and vision=, hub ids or directories."
    )


def _released(
    checkpoint: Checkpoint,
    target: Path,
    name: str,
    vision: str | None,
    language: str | None,
    tokenizer: str | None,
    hub: dict[str, Any],
) -> None:
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(released.config_for(name))
    tensors = openflamingo.translate(model, checkpoint)
    warn_if_shut(tensors, "the checkpoint")
    config = model.config
    config.language = absolute(language or str(config.language))
    config.vision = dict(config.vision, name=absolute(vision or config.vision["name"]))
    write_checkpoint(target, config, tensors)
    released.image_processor().save_pretrained(target)
    try:
        processor = FlamingoProcessor.of_released(name, tokenizer=tokenizer or language, **hub)
    except OSError:
        warnings.warn(
            f"The tokenizer of {tokenizer or config.language} is not within reach, so {target} has none yet. Add it by "
            f"FlamingoProcessor.from_pretrained({name!r}).save_pretrained({str(target)!r}), or convert again with "
            "tokenizer=DIRECTORY.",
            stacklevel=3,
        )
    else:
        processor.save_pretrained(target)


def _with_backbones(
    checkpoint: Checkpoint, target: Path, vision: str, language: str, tokenizer: str, options: dict[str, Any]
) -> None:
    frozen, decoder_layers = options.pop("freeze_lm_embeddings"), options.pop("decoder_layers")
    reader: Any = AutoTokenizer.from_pretrained(tokenizer, **reachable(tokenizer, options))
    processor = FlamingoProcessor(None, reader)
    frames = checkpoint.tensors.get("perceiver.frame_embs")
    model = FlamingoForConditionalGeneration.from_backbones(
        vision,
        language,
        processor,
        cross_attn_every_n_layers=checkpoint.cross_attn_every_n_layers or 1,
        decoder_layers=decoder_layers,
        resampler=None if frames is None else {"max_frames": len(frames)},
        trained_dtype=next(iter(checkpoint.tensors.values())).dtype,  # whatever the language model's files have
        **options,
    )
    model.added_tokens.requires_grad_(not frozen)
    openflamingo.load(model, checkpoint)
    model.save_pretrained(target)
    processor.image_processor = image_processor_of(model.config.vision)
    processor.save_pretrained(target)

"""Writes the trained Flamingo as a self-contained directory with 16-bit weights, and opens it again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.files import read_json, replacing, write_json
from scripts.pretrain_mini import card, naming

MOST_BYTES = 20_000_000


def train_and_save(folder: Path) -> Path:
    """Trains the last two stages and writes `folder/flamingo-mini`, unless it is there already."""
    target = folder / "flamingo-mini"
    if (target / "model.safetensors").exists():
        print(f"[flamingo] kept: {target}")
        return target
    model, processor = naming.train(folder)
    model.save_pretrained(target, include_backbones=True)
    processor.save_pretrained(target)
    processor.image_processor.save_pretrained(target / "vision")  # its mean and deviation are its own
    halve(target)
    return target


def halve(directory: Path, most: int = MOST_BYTES) -> int:
    """Stores every weight in 16 bits; models still open in 32. Returns the directory's bytes of weights.

    Raises:
        ValueError: the weights take more than `most` bytes.
    """
    for file in directory.rglob("*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
        with replacing(file) as part:
            save_file(tensors, part, metadata={"format": "pt"})
    for file in directory.rglob("config.json"):
        config = read_json(file)
        for part in (config, config.get("text_config") or {}):
            if "dtype" in part:
                part["dtype"] = "float32"
        write_json(file, config, indent=2)
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
    if size > most:
        raise ValueError(
            f"the weights in {directory} take {size / 1e6:.1f} MB; at most {most / 1e6:.1f} MB are shipped"
        )
    return size


def load(directory: Path) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The model, in 32 bits, and its processor."""
    processor = FlamingoProcessor.from_pretrained(str(directory))
    model = FlamingoForConditionalGeneration.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True)
    model.tokenizer = processor.tokenizer
    return model.eval(), processor


def write_card(directory: Path, model: FlamingoForConditionalGeneration, table: str, origin: str) -> None:
    """Writes the model card beside the weights."""
    trained = sum(p.numel() for p in model.trained_parameters().values()) / 1e6
    parts = {"vision": model.vision, "language": model.language_model}
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors")) / 1e6
    card.write(directory, table, {**counts, "trained": trained}, size, origin)

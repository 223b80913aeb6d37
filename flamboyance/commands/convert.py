"""`convert`: an OpenFlamingo checkpoint as a model directory."""

import argparse
from pathlib import Path


def convert(arguments: argparse.Namespace) -> int:
    """Write what trained as safetensors, with a configuration that names the backbones."""
    checkpoint, directory = Path(arguments.checkpoint), Path(arguments.directory)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
    from flamboyance.checkpoints.convert import convert_file

    named = {key: getattr(arguments, key) for key in ("model", "language", "vision", "tokenizer")}
    convert_file(checkpoint, directory, **named)
    print(f"wrote {directory}")
    return 0

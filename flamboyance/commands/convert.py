"""`convert`: an OpenFlamingo checkpoint as a model directory."""

import argparse
from pathlib import Path


def convert(arguments: argparse.Namespace) -> int:
    """Write what trained as safetensors, with a configuration that names the backbones."""
    checkpoint, directory = Path(arguments.checkpoint), Path(arguments.directory)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; expected a folder to write to")
    from flamboyance.checkpoints.openflamingo import convert_file

    convert_file(checkpoint, directory, model=arguments.model)
    print(f"wrote {directory}")
    return 0

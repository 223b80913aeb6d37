"""`convert`: converts an OpenFlamingo checkpoint to a model directory."""

import argparse
from pathlib import Path

EPILOG = "`convert mmc4`, `convert obelics` and `convert folder` turn datasets into tars.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument("checkpoint", help="an OpenFlamingo .pt file")
    parser.add_argument("directory", help="the folder to write: trained tensors as safetensors, and the configuration")
    parser.add_argument("--model", help="the released model of the checkpoint (default: recognized by its layout)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a model that the folder holds")
    group = parser.add_argument_group("backbones", "hub ids or directories, for checkpoints that were not released")
    group.add_argument("--language", metavar="NAME|DIR", help="the language model")
    group.add_argument("--vision", metavar="NAME|DIR", help="the vision tower")
    group.add_argument("--tokenizer", metavar="NAME|DIR", help="default: the language model's")


def convert(arguments: argparse.Namespace) -> int:
    """Write the trained tensors as safetensors, with a configuration that names the backbones."""
    checkpoint, directory = Path(arguments.checkpoint), Path(arguments.directory)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
    held = [name for name in ("config.json", "model.safetensors") if (directory / name).exists()]
    if held and not arguments.overwrite:
        raise ValueError(
            f"{directory} holds {' and '.join(held)}, of another model or an earlier run: give another folder, or "
            "--overwrite to replace them"
        )
    from flamboyance.convert_checkpoint import convert_file

    named = {key: getattr(arguments, key) for key in ("model", "language", "vision", "tokenizer")}
    convert_file(checkpoint, directory, **named)
    print(f"wrote {directory}")
    return 0

"""`convert`: an OpenFlamingo checkpoint as a model directory, and datasets as tars."""

import argparse
from collections import Counter
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


def convert_mmc4(arguments: argparse.Namespace) -> int:
    """Write MMC4's zips and images as tars."""
    from flamboyance.commands.progress import progress
    from flamboyance.data import convert_mmc4
    from flamboyance.data.shards import expand

    with progress(len(expand(arguments.zips)), "zips") as advance:
        counts = convert_mmc4.convert_mmc4(
            arguments.zips,
            arguments.images,
            arguments.output,
            per_shard=arguments.records,
            inside=arguments.base64,
            check=not arguments.unchecked,
            workers=arguments.workers,
            advance=advance,
        )
    return _tell(arguments.output, counts)


def convert_folder(arguments: argparse.Namespace) -> int:
    """Write a folder of images with texts, or a JSONL file, as tars."""
    from flamboyance.commands.progress import progress
    from flamboyance.data import convert

    with progress(None, "records") as advance:
        counts = convert.convert_folder(
            arguments.source,
            arguments.output,
            per_shard=arguments.records,
            outside=arguments.outside,
            advance=advance,
        )
    return _tell(arguments.output, counts)


def _tell(output: str, counts: Counter[str]) -> int:
    """What was found; status 1 where nothing was."""
    print(output)
    for name, count in sorted(counts.items()):
        if count:
            print(f"{count:>12,}  {name}")
    return 0 if counts["tars written"] or counts["tars already there"] else 1

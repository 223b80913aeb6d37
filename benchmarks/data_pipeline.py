"""The data pipeline alone, beside the webdataset library reading the same tars: documents per second and core.

    pip install webdataset
    python benchmarks/data_pipeline.py [--pairs 600] [--rounds 5] [--json FILE]

Everything runs in one process on one thread, and the processor time is counted, which other work on the machine hardly
changes. The ways take turns, so a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
import webdataset
from PIL import Image

from flamboyance import FlamingoProcessor
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.loader import Loader
from flamboyance.data.shards import records
from flamboyance.files import write_json
from flamboyance.images import ImageProcessor

BATCH, SHUFFLE, SHARDS = 32, 200, 3
WORDS = "a photo of red blue dog cat on the street with two people near some trees and old houses by night".split()


def write_shards(folder: Path, pairs: int) -> list[str]:
    """Pairs as img2dataset writes them: JPEGs of 256 to 400 pixels, captions, and JSON about them."""
    rng, names = np.random.default_rng(0), []
    for shard in range(SHARDS):
        names.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for number in range(pairs // SHARDS):
                caption = " ".join(rng.choice(WORDS, int(rng.integers(5, 20))))
                about = {"caption": caption, "url": "https://example.org/" + "x" * 60, "width": 400, "height": 300}
                files = {"jpg": photo(rng), "json": json.dumps(about).encode(), "txt": caption.encode()}
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return names


def photo(rng: np.random.Generator) -> bytes:
    """Coarse shapes with some grain, which a JPEG packs about as well as a photograph."""
    width, height = (int(side) for side in rng.integers(256, 401, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.normal(0, 8, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(shards: list[str], pairs: int, processor: FlamingoProcessor) -> int:
    source = Pairs(shards=tuple(shards), batch_size=BATCH, shuffle=SHUFFLE, flip=0.5)
    loader = Loader({"pairs": source}, processor, seed=0, workers=0)
    return sum(len(next(loader)["pairs"].input_ids) for _ in range(pairs // BATCH))


def theirs(shards: list[str], pairs: int, processor: FlamingoProcessor, image: Callable[[Any], torch.Tensor]) -> int:
    """OpenFlamingo's chain of webdataset, without its workers."""

    def images(batch: list[Any]) -> torch.Tensor:
        made = torch.stack([image(one) for one in batch])
        flipped = torch.rand(len(made)) < 0.5
        made[flipped] = made[flipped].flip(-1)
        return made

    def texts(batch: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [ids[:32] for ids in processor.tokenize([f"<image>{text}<|endofchunk|>" for text in batch])]
        padded = processor.pad(rows, left=False)
        return padded["input_ids"], padded["attention_mask"]

    chain = webdataset.WebDataset(shards, shardshuffle=False).shuffle(SHUFFLE).decode("pilrgb").to_tuple("jpg", "txt")
    chain = chain.batched(BATCH, partial=False).map_tuple(images, texts)
    return sum(len(batch[0]) for batch in chain)


def our_bytes(shards: list[str]) -> int:
    return sum(1 for shard in shards for _ in records(shard))


def their_bytes(shards: list[str]) -> int:
    return sum(1 for _ in webdataset.WebDataset(shards, shardshuffle=False))


def measure(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Documents a second of processor time, of each way in each round; a first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            documents = way()
            if turn:
                found[name].append(documents / (time.process_time() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=600, help="pairs in the tars")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, of which the median is taken")
    parser.add_argument("--json", help="also write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    mini = Path(__file__).parent.parent / "flamboyance" / "weights" / "flamingo-mini"
    processor = FlamingoProcessor(ImageProcessor.clip(224), FlamingoProcessor.from_pretrained(mini).tokenizer)
    picture = processor.image_processor
    assert isinstance(picture, ImageProcessor)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), given.pairs)
        pairs: dict[str, Callable[[], int]] = {
            "flamboyance": lambda: ours(shards, given.pairs, processor),
            "webdataset": lambda: theirs(shards, given.pairs, processor, picture),
            "webdataset, 8-bit images": lambda: theirs(shards, given.pairs, processor, picture.levels),
        }
        stored: dict[str, Callable[[], int]] = {
            "flamboyance": lambda: our_bytes(shards),
            "webdataset": lambda: their_bytes(shards),
        }
        results = {
            "pairs, decoded": measure(pairs, given.rounds),
            "tars, not decoded": measure(stored, given.rounds),
        }
        size = sum(os.path.getsize(shard) for shard in shards) / given.pairs
    print(f"{'':20}{'':28}{'documents/s':>12}{'least':>9}{'most':>9}{'of webdataset':>15}")
    for task, ways in results.items():
        for name, rates in ways.items():
            ratio = statistics.median(rates) / statistics.median(ways["webdataset"])
            figures = f"{statistics.median(rates):12,.0f}{min(rates):9,.0f}{max(rates):9,.0f}{ratio:14.2f}x"
            print(f"{task:20}{name:28}{figures}")
    if given.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        versions = {"torch": torch.__version__, "webdataset": webdataset.__version__, "pillow": Image.__version__}
        about = {**machine, **versions, "pairs": given.pairs, "bytes_per_pair": round(size), "batch": BATCH}
        write_json(given.json, {"about": about, "documents_per_second": results})


if __name__ == "__main__":
    main()

"""A run of a few thousand parameters over real tars, for tests that start, kill and compare runs.

python -m tests.training.tiny_run OUTPUT STEPS [FIELD=VALUE…]     (torchrun works too)
"""

import io
import json
import sys
import tarfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.checkpoints.directory import read_config
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.training.config import TrainingConfig
from flamboyance.training.loop import train
from flamboyance.training.run import TrainingRun
from tests.tiny import save_tiny_flamingo

COLORS = {"red": (220, 30, 30), "blue": (40, 60, 220), "green": (30, 160, 60)}


def jpeg(color: str, seed: int) -> bytes:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-30, 31, (24, 24, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(COLORS[color]) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(folder: Path) -> None:
    """Three tars of pairs and three of interleaved documents, 20 records each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLORS)
    for shard in range(3):
        pairs, documents = {}, {}
        for i in range(20):
            seed = 100 * shard + i
            color = names[seed % 3]
            pairs |= {f"{i:03}.jpg": jpeg(color, seed), f"{i:03}.txt": f"Output : a {color} square".encode()}
            shown = [names[(seed + k) % 3] for k in range(1 + seed % 3)]
            record = {
                "text_list": [f"Output : a {c} circle" for c in shown],
                "similarity_matrix": (0.1 + 0.3 * np.eye(len(shown))).tolist(),
                "image_info": [
                    {"image_name": f"{k}.jpg", "image_base64": b64encode(jpeg(c, 7 * seed + k)).decode()}
                    for k, c in enumerate(shown)
                ],
            }
            documents[f"{i:03}.json"] = json.dumps(record).encode()
        write_tar(folder / f"pairs-{shard}.tar", pairs)
        write_tar(folder / f"documents-{shard}.tar", documents)


def tiny_run(output: Path, steps: int, shards: Path | None = None, **options) -> TrainingRun:
    """`options`: fields of TrainingConfig."""
    folder = shards or output / "shards"
    model = output / "start" / "model"

    def prepare() -> None:
        if not (folder / "documents-2.tar").exists():
            write_shards(folder)
        if not (model / "model.safetensors").exists():
            save_tiny_flamingo(output / "start")

    def build():
        processor = FlamingoProcessor.from_pretrained(model)
        return FlamingoForConditionalGeneration.from_pretrained(model, dtype=torch.float32), processor

    sources = {
        "pairs": Pairs(shards=str(folder / "pairs-{0..2}.tar"), batch_size=3, weight=0.2, shuffle=15),
        "documents": MMC4(
            shards=str(folder / "documents-{0..2}.tar"), batch_size=2, shuffle=10, min_image_bytes=0, reject_single=0.5
        ),
    }
    settings = {
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "checkpoint_every": 5,
        "workers": 2,
        "threads": 1,
        "seed": 3,
        **options,
    }
    training = TrainingConfig(output=str(output), sources=sources, steps=steps, **(settings | options))
    return TrainingRun(training, build, lambda: read_config(model), prepare=prepare)


def losses(output: Path) -> list[float]:
    """The losses that a run has logged; every step once, in order."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def main(arguments: list[str]) -> None:
    output, steps, *given = arguments
    values = {k: (v if k == "parallel" else int(v)) for k, v in (one.split("=") for one in given)}
    train(tiny_run(Path(output), int(steps), **values))


if __name__ == "__main__":
    main(sys.argv[1:])

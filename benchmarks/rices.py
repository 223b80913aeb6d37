"""RICES: features of images per second, and the time to find the most similar of COCO's training images.

    python -m benchmarks.rices [--images N] [--threads N] [--json FILE]

Pictures are JPEG files of 640 x 480 pixels. Features are built on one core, by the embedded model's tower and by one
of ViT-B/32's shape with random weights: first from nothing, then with all features stored, then for copies of the
files, which are recognised by their content. Retrieval finds 32 images for each of 5,000 queries among 82,783, with
features 768 wide. It is compared with products and a full argsort in batches of 8 queries, as open_flamingo 2.0.1
does it. On a shared machine, processor time is more reliable than the clock.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks import results
from flamboyance import catalog
from flamboyance.evaluation.rices.features import Encoder, build
from flamboyance.evaluation.rices.retrieval import top_k
from flamboyance.images import ImageProcessor

QUERIES, SUPPORT, WIDTH, K = 5_000, 82_783, 768, 32
PART = 1_000  # of the queries are given to the slow way, and its time is multiplied
TURNS = 3  # of which the fastest counts: on a shared machine the others wait


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, seconds by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - clock, time.process_time() - processor


def pictures(folder: Path, number: int) -> list[Path]:
    """Smooth ground with some grain, so that a file has a photograph's size: 60 to 80 kB."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = []
    for i in range(number):
        ground = Image.fromarray(random.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((640, 480))
        grain = random.normal(0, 6, (480, 640, 1))
        paths.append(folder / f"{i:05}.jpg")
        Image.fromarray((np.asarray(ground) + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def encoders(folder: Path) -> dict[str, Encoder]:
    spec, processor = catalog.resolve("mini").tower()
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=224, patch_size=32)).save_pretrained(folder)
    return {
        "mini's tower": Encoder.open(spec["name"], processor=processor),
        "ViT-B/32's shape": Encoder.open(str(folder), processor=ImageProcessor.clip(224)),
    }


def building(number: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        images = pictures(home / "pictures", number)
        size = sum(image.stat().st_size for image in images) / number
        for name, encoder in encoders(home / "tower").items():
            shutil.rmtree(home / "moved", ignore_errors=True)
            shutil.copytree(home / "pictures", home / "moved", copy_function=shutil.copyfile)
            moved = [home / "moved" / image.name for image in images]
            _, alone, _ = timed(lambda encoder=encoder: encoder.about)
            decoded, _, reading = timed(lambda encoder=encoder: [encoder.processor.levels(i) for i in images[:64]])
            encoder(decoded)
            _, _, encoding = timed(lambda encoder=encoder, levels=decoded: encoder(levels))
            found = {"tower": name, "bytes": size, "hash_s": alone}
            found |= {"decode_ms": reading / 64 * 1e3, "encode_ms": encoding / 64 * 1e3}
            for what, paths in (("build", images), ("again", images), ("moved", moved)):
                _, clock, processor = timed(
                    lambda encoder=encoder, paths=paths: build(paths, encoder, home / "cache", threads=1)
                )
                found |= {f"{what}_per_s": number / clock, f"{what}_per_core_s": number / processor}
            rows.append(found)
    return rows


def reference(queries: torch.Tensor, support: torch.Tensor) -> np.ndarray:
    """As open_flamingo finds them, float32 features."""
    found = []
    for start in range(0, len(queries), 8):
        similarity = queries[start : start + 8] @ support.T
        found.append(similarity.argsort(dim=-1, descending=True)[:, :K])
    return torch.cat(found).numpy()


def retrieval() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    # A common part, as CLIP's features have one: unlike images have a cosine of 0.6 or so.
    common = 1.2 * torch.randn(1, WIDTH, generator=generator)
    queries, support = (
        torch.nn.functional.normalize(torch.randn(n, WIDTH, generator=generator) + common).half()
        for n in (QUERIES, SUPPORT)
    )
    whole_queries, whole = queries.float(), support.float()
    ways: dict[str, Callable[[], Any]] = {
        "exact top 32": lambda: top_k(queries, lambda i: support[torch.from_numpy(i)], SUPPORT, K),
        "products, full argsort": lambda: reference(whole_queries[:PART], whole),
        "products alone, by 1024": lambda: [whole_queries[i : i + 1024] @ whole.T for i in range(0, QUERIES, 1024)],
    }
    times = {"products, full argsort": QUERIES // PART}
    runs: dict[str, list[tuple[Any, float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            runs[name].append(timed(way))
    ours, theirs = runs["exact top 32"][0][0], runs["products, full argsort"][0][0]
    return [
        *(
            {
                "way": name,
                "seconds": times.get(name, 1) * min(clock for _, clock, _ in done),
                "processor_seconds": times.get(name, 1) * min(processor for _, _, processor in done),
            }
            for name, done in runs.items()
        ),
        {"way": f"of {PART} queries, those whose 32 differ", "queries": int((ours[:PART] != theirs).any(1).sum())},
    ]


def table(built: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    lines = [
        "| images/s of a core | build | of it: decode ms | tower ms | found again | moved files |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['tower']} | {row['build_per_core_s']:.0f} | {row['decode_ms']:.1f} | {row['encode_ms']:.1f} "
        f"| {row['again_per_core_s']:,.0f} | {row['moved_per_core_s']:,.0f} |"
        for row in built
    ]
    lines += [
        "",
        f"| {QUERIES:,} queries, {SUPPORT:,} images, {WIDTH} wide | seconds | of the processor |",
        "|---|---|---|",
    ]
    *ways, differing = found
    lines += [f"| {row['way']} | {row['seconds']:.1f} | {row['processor_seconds']:.1f} |" for row in ways]
    lines += ["", f"{differing['way']}: {differing['queries']} (float32 rounds what is nearly equal)."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="for retrieval (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    built = building(arguments.images)
    torch.set_num_threads(arguments.threads)
    found = retrieval()
    text = table(built, found)
    print(text)
    about = {"images": arguments.images, "threads": arguments.threads}
    results.write("rices", [*built, *found], text, about, arguments.json)


if __name__ == "__main__":
    main()

"""Trains a tiny Flamingo to say what happens in short clips, and measures it on 8 frames, on one, and on 16.

    python -m scripts.video_mini OUTPUT

Each clip is an MP4 file of eight seconds with one object that moves to the left, moves to the right, appears, or
changes its colour. The frame in the middle is drawn alike for all four, so that it answers nothing. The tower is
flamingo-mini's; the language model has random weights, since it need only say four answers. A run that is stopped
resumes with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flamboyance import FewShotTask, FlamingoForConditionalGeneration, FlamingoProcessor, names
from flamboyance.checkpoints.open_backbones import open_tokenizer
from flamboyance.data.formats.user_data import UserData
from flamboyance.evaluation.metrics.intervals import wilson
from flamboyance.files import write_json
from flamboyance.mini.world.scenes import SIDE, Scene, Thing, render, scene
from flamboyance.mini.world.words import COLORS
from flamboyance.recipes.beginning import begin_outputs
from flamboyance.training.config import TrainingConfig
from flamboyance.training.loop import train
from flamboyance.training.run import TrainingRun
from flamboyance.videos import VideoSampling

SECONDS, RATE = 8, 4  # of a clip, and its frames a second
FRAMES = SECONDS * RATE
EVENTS = ("moves left", "moves right", "appears", "changes color")
# Frames that are shown, by name. One a second is what the model is trained on.
SHOWN = {"8": VideoSampling(8), "1": VideoSampling(1), "16": VideoSampling(16, 2.0), "4": VideoSampling(4, 0.5)}
NEAR, FAR = SIDE * 0.35, SIDE * 0.65  # the middle frame's object is between these columns


def clip(event: str, rng: np.random.Generator) -> np.ndarray:
    """The frames of a clip, (FRAMES, SIDE, SIDE, 3) uint8."""
    start = scene(rng, 1, size="large")
    [thing] = start.things
    thing = replace(thing, x=float(rng.uniform(NEAR, FAR)), y=float(rng.uniform(14, SIDE - 14)))
    other = str(rng.choice([color for color in COLORS if color != thing.color]))
    way, far = {"moves left": -1, "moves right": 1}.get(event, 0), float(rng.uniform(10, 16))
    appears, changes = float(rng.uniform(0.15, 0.42)), float(rng.uniform(0.2, 0.8))
    scenes: list[Scene] = []
    for time in (np.arange(FRAMES) + 0.5) / FRAMES:
        shown: tuple[Thing, ...] = (replace(thing, x=thing.x + way * far * (2 * time - 1)),)
        if event == "appears" and time < appears:
            shown = ()
        if event == "changes color" and time > changes:
            shown = (replace(thing, color=other),)
        scenes.append(replace(start, things=shown))
    return render(scenes)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes an MP4 file, whole or not at all."""
    part = path.with_suffix(".partial")
    with av.open(str(part), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    os.replace(part, path)


def write_clips(folder: Path, count: int, seed: int) -> None:
    """Writes the clips that are missing, with their texts beside them; as many of each event."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path, event = folder / f"{number:05d}.mp4", EVENTS[number % len(EVENTS)]
        if not path.is_file():
            path.with_suffix(".txt").write_text(event, encoding="utf-8")
            write_clip(path, clip(event, np.random.default_rng([seed, number])))


def write_language(directory: Path) -> None:
    """Writes a language model of random weights that knows the words of the answers, with its tokenizer."""
    words = ["<unk>", "</s>", "Output", ":", *dict.fromkeys(" ".join(EVENTS).split())]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes["initializer_range"] = 64**-0.5  # the head is frozen too: with smaller weights no word is ever likely
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), num_attention_heads=4, **sizes)).save_pretrained(directory)


def build(language: Path) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini's tower, the language model, and new parameters between them, with time embeddings for 8 frames."""
    mini = names.embedded_directory(names.MINI)
    images = FlamingoProcessor.from_pretrained(mini, local_files_only=True).image_processor
    processor = FlamingoProcessor(images, open_tokenizer(str(language)))
    model = FlamingoForConditionalGeneration.from_backbones(
        str(mini / "vision"),
        str(language),
        processor,
        cross_attn_every_n_layers=1,
        resampler={"depth": 2, "heads": 4, "dim_head": 32, "latents": 8, "ff_mult": 2, "max_frames": 8},
        cross_attention={"heads": 4, "dim_head": 16, "ff_mult": 2},
        dtype=torch.float32,
    )
    begin_outputs(model)
    return model, processor


def accuracy(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    folder: Path,
    sampling: VideoSampling,
    count: int | None = None,
) -> list[bool]:
    """For each of the first `count` clips of a folder, whether its text is the most likely one of the four."""
    clips, before = sorted(folder.glob("*.mp4"))[:count], processor.video
    processor.video = sampling
    try:
        found = FewShotTask(model, processor).classify(clips, EVENTS)
    finally:
        processor.video = before
    texts = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in clips]
    return [label == text for (label, _), text in zip(found, texts, strict=True)]


def evaluate(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, folder: Path) -> dict[str, float]:
    return {"accuracy": float(np.mean(accuracy(model, processor, folder, SHOWN["8"])))}


def run(output: Path, clips: int, tested: int, steps: int, batch_size: int) -> TrainingRun:
    """The training, on clips that it renders itself."""

    def prepare() -> None:
        for name, count, seed in (("train", clips, 1), ("validation", tested // 4, 2), ("test", tested, 3)):
            write_clips(output / name, count, seed)
        if not (output / "language" / "config.json").is_file():
            write_language(output / "language")

    source = UserData(shards=str(output / "train"), batch_size=batch_size, shuffle=500)
    training = TrainingConfig(
        output=str(output / "run"),
        sources={"clips": source},
        steps=steps,
        learning_rate=1e-3,
        warmup_steps=max(1, min(50, steps // 10)),
        schedule="linear",
        decay_fraction=0.3,
        checkpoint_every=50,
        workers=0,
        threads=1,
        evaluate_every=max(1, steps // 8),
    )
    return TrainingRun(
        training,
        partial(build, output / "language"),
        outline=lambda: build(output / "language")[0].config,
        evaluate=partial(evaluate, folder=output / "validation"),
        prepare=prepare,
    )


def measure(directory: Path, folder: Path, count: int) -> dict[str, Any]:
    """The share of the first clips that are answered rightly with each number of frames, and its 95 % interval."""
    model = FlamingoForConditionalGeneration.from_pretrained(directory)
    processor = FlamingoProcessor.from_pretrained(directory)
    figures: dict[str, Any] = {}
    for name, sampling in SHOWN.items():
        right = accuracy(model, processor, folder, sampling, count)
        figures[name] = {"right": sum(right), "clips": len(right), "interval": wilson(sum(right), len(right))}
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as the table of docs/video.md."""
    lines = ["| frames shown | answered rightly | 95 % interval |", "| --- | --- | --- |"]
    for name, one in figures.items():
        low, high = one["interval"]
        lines.append(f"| {name} | {one['right'] / one['clips']:.1%} of {one['clips']} | {low:.1%} to {high:.1%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.video_mini", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=1600, help="to train on (1600)")
    parser.add_argument("--tested", type=int, default=240, help="to measure on (240)")
    parser.add_argument("--steps", type=int, default=800, help="(800)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips of a step (16)")
    given = parser.parse_args(arguments)
    model = train(run(given.output, given.clips, given.tested, given.steps, given.batch_size))
    figures = measure(model, given.output / "test", given.tested)
    write_json(given.output / "figures.json", {"steps": given.steps, "frames": figures}, indent=2)
    print(json.dumps(figures))
    print(table(figures))


if __name__ == "__main__":
    main()

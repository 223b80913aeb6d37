"""A benchmark's worker that runs Flamboyance's evaluation: the counterpart of reference_evaluation.py."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.flamboyance_worker import held
from benchmarks.flamboyance_worker import load as load_model
from benchmarks.processes import peak_memory, serve, watch_memory
from flamboyance.evaluation import results, run
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.tasks import open_task
from flamboyance.images import ImageProcessor


def load(paths: dict[str, str], threads: int, precision: str) -> dict[str, str]:
    """Opens the reference's model."""
    versions = load_model(paths, threads)
    held["processor"].image_processor = ImageProcessor.clip(held["model"].vision.image_size)
    if precision == "bf16":
        held["model"].to(torch.bfloat16)
    held["model"].pack()
    return versions


def evaluate(data: str, shots: int, queries: int, support: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Captions of a COCO data set: seconds, their parts, and the captions by the image's id."""
    answers = FlamingoAnswers(held["model"], held["processor"], beams=3, bare_labels=True)
    prompts = _timed(held["model"])
    began = time.perf_counter()
    task = open_task("coco", Path(data), protocol="openflamingo")
    with tempfile.TemporaryDirectory() as output:
        settings = run.Settings(
            Path(output), shots=(shots,), seeds=(seed,), queries=queries, batch_size=batch_size, protocol="openflamingo"
        )
        about: dict[str, Any] = {"model": {}, "protocol": "openflamingo", "fixed": {}, "tasks": {}}
        run.evaluate([task], answers, settings, about, say=lambda _: None)
        seconds = time.perf_counter() - began
        cell = settings.cells("coco")[0].folder(settings.output)
        captions = {row["id"]: row["answer"] for row in results.read_rows(cell / "predictions.jsonl")}
    parts = {"media": answers.seconds["media"], "prompt": prompts[0]}
    parts["decoding"] = answers.seconds["answer"] - prompts[0]
    return {"seconds": seconds, "parts": parts, "captions": captions}


def _timed(model: Any) -> list[float]:
    """Seconds that the model will have spent on prompts."""
    spent, plain = [0.0], model.read_prompts

    def read_prompts(*given: Any) -> None:
        began = time.perf_counter()
        plain(*given)
        spent[0] += time.perf_counter() - began

    model.read_prompts = read_prompts
    return spent


if __name__ == "__main__":
    functions = (load, evaluate, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})

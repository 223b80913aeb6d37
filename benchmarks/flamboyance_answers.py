"""A benchmark's worker that answers prompts with Flamboyance: the counterpart of reference_answers.py."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from benchmarks import flamboyance_worker
from benchmarks.flamboyance_worker import held
from benchmarks.parts import Parts, cache_bytes, machine_rates, weight_bytes
from benchmarks.processes import anonymous_memory, peak_memory, serve, timed, watch_memory
from flamboyance.few_shot import FewShotTask
from flamboyance.images import ImageProcessor
from flamboyance.templates import caption


def load(
    paths: dict[str, str], threads: int, cross_attn_every_n_layers: int, precision: str = "fp32", clock: str = "wall"
) -> None:
    """Opens the reference's model, to be watched by part."""
    flamboyance_worker.load(paths, threads, cross_attn_every_n_layers)
    model = held["model"].eval().requires_grad_(False)  # the counter of operations refuses what could learn
    held["processor"].image_processor = ImageProcessor.clip(model.vision.image_size)
    if precision == "bf16":
        model.to(torch.bfloat16)
    held["parts"] = Parts(model.pack(), clock)


def prepare(images: str, asked: dict[str, Any], known: bool) -> None:
    """Ready to answer a work's prompts.

    Args:
        known: whether the demonstrations are computed now, as FewShotTask keeps them.
    """
    content = torch.load(images, weights_only=True)
    for name in ("task", "inputs"):  # of the work before
        held.pop(name, None)
    held["asked"] = asked
    if known:
        pictures = [Image.fromarray(levels.permute(1, 2, 0).numpy()) for levels in content["levels"]]
        *shown, _ = asked["images"][0]
        shots = [(pictures[i], text) for i, text in zip(shown, asked["demonstrations"], strict=True)]
        held["task"] = FewShotTask(held["model"], held["processor"], shots)
        held["queries"] = [pictures[row[-1]] for row in asked["images"]]
        held["answer"] = _ask
        assert held["task"].prefix is not None
    else:
        held["inputs"] = _inputs(content["pixels"], asked)
        held["answer"] = _score if asked["candidates"] else _generate


def _inputs(pixels: torch.Tensor, asked: dict[str, Any]) -> dict[str, Any]:
    images = torch.tensor(asked["images"])
    prompt = "".join(caption.demonstration(shot) for shot in asked["demonstrations"]) + caption.query()
    rows = held["processor"].tokenize([prompt] * len(images))
    counts = torch.tensor([images.shape[1]] * len(images))
    return {**held["processor"].pad(rows), "pixel_values": pixels[images][:, :, None], "media_counts": counts}


def _generate() -> list[str]:
    inputs = held["inputs"]
    out = held["model"].generate(**inputs, do_sample=False, **held["asked"]["generation"])
    return held["processor"].batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _ask() -> list[str]:
    return held["task"](held["queries"], batch_size=held["asked"]["batch_size"], **held["asked"]["generation"])


def _score() -> list[list[float]]:
    return held["model"].score(**held["inputs"], candidates=held["asked"]["candidates"]).tolist()


def answer() -> dict[str, Any]:
    """Answers all prompts: seconds, those of all cores, and by part; calls by part; `output`: texts, or scores."""
    parts = held["parts"]
    parts.begin()
    held["model"].tokenizer = held["processor"].tokenizer
    output, seconds = timed(held["answer"])
    return {**seconds, "parts": parts.end(), "calls": parts.calls, "output": output}


def logits(file: str) -> None:
    """Writes those of each prompt's next token, (B, V) float32."""
    with torch.no_grad():
        out = held["model"](**held["inputs"], logits_to_keep=1)
    torch.save(out.logits[:, -1].float(), file)


def kept(images: str, asked: dict[str, Any]) -> int:
    """Bytes that computed demonstrations take, as FewShotTask keeps them."""
    for name in ("task", "inputs", "queries"):
        held.pop(name, None)
    before = anonymous_memory()
    prepare(images, asked, known=True)
    return anonymous_memory() - before


def counts() -> dict[str, Any]:
    """Calls and operations of each part in an answer, and bytes of weights of a call and of what is kept."""
    parts, model = held["parts"], held["model"]
    parts.counting = True
    answer()
    parts.counting = False
    return {
        "calls": parts.calls, "operations": parts.operations,
        "weight_bytes": weight_bytes(model), "cache_bytes": cache_bytes(model),
    }  # fmt: skip


if __name__ == "__main__":
    functions = (load, prepare, answer, logits, kept, counts, machine_rates, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})

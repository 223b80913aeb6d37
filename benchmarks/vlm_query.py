"""What a query behind 16 demonstrations takes: flamingo-small beside a vision-language model of SmolVLM-256M's shape.

    python -m benchmarks.vlm_query [--shots 16] [--turns 3] [--threads 1]

Both have a language model of SmolLM2-135M's shape, and answer with 5 tokens. In turns in one process:

    reused         flamingo-small, `FewShotTask`: demonstrations computed before, one query
    whole prompt   flamingo-small, the whole prompt with all images, as `model.generate` takes it
    SmolVLM        Idefics3 (random weights), the whole prompt with all images, as its processor writes it; an image is
                   one square of 512 pixels and 64 tokens, without splitting into further squares

The images are those of the package. Reading and preprocessing them counts. Times are of the processor, so that they can
be compared on a machine that does other work; one thread, since several that wait for each other count too. Weights are
in float32, and flamingo-small's are packed. With splitting, its processor's default, an image is 17 squares; the tokens
of that prompt are counted, and not computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
)

import flamboyance as fl
from flamboyance import names, templates
from flamboyance.files import read_json_lines
from flamboyance.images import load_image
from flamboyance.small.benchmarks import HOME

NEW_TOKENS = 5
SQUARE, PATCH, SCALE = 512, 16, 4  # of SmolVLM-256M: pixels, pixels, patches on a side of a token
CONTEXT = 8192  # tokens, of SmolLM2-135M and of SmolVLM-256M
Shown = Sequence[tuple[Path, str]]


def smolvlm() -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """A model of SmolVLM-256M's shape, and its processor with flamingo-small's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(names.embedded_directory(names.SMALL))
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens(["<global-img>", *places], special_tokens=True)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 4 * SQUARE}, max_image_size={"longest_edge": SQUARE}),
        tokenizer,
        image_seq_len=(SQUARE // PATCH // SCALE) ** 2,
    )
    torch.manual_seed(0)
    config = Idefics3Config(
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": SQUARE, "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT,
        },
        scale_factor=SCALE, image_token_id=processor.image_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # every answer has as many tokens
    return model, processor


def smolvlm_inputs(processor: Idefics3Processor, shown: Shown, query: Path, splitting: bool = False) -> Any:
    text = "".join(f"<image>Output:{word}<end_of_utterance>\n" for _, word in shown) + "<image>Output:"
    images = [load_image(image) for image in (*(image for image, _ in shown), query)]
    return processor(text=[text], images=[images], return_tensors="pt", do_image_splitting=splitting)


def seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shots", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [row for _, row in read_json_lines(HOME / "pictures.jsonl") if row["collection"] == "twemoji"]
    pictures = [(HOME / row["file"], row["concept"]) for row in rows]
    shown, queries = pictures[: given.shots], [image for image, _ in pictures[given.shots :]]

    model, processor = fl.load_small()
    model.pack()
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    task = fl.FewShotTask(model, processor, shown)
    before = seconds(lambda: task.prefix)
    written = "".join(templates.caption.demonstration(word) for _, word in shown) + templates.caption.query()

    def whole(query: Path) -> None:
        images = [*(image for image, _ in shown), query]
        model.generate(**processor(text=[written], images=[images]), **options)

    other, writer = smolvlm()

    @torch.inference_mode()
    def prompted(query: Path) -> None:
        other.generate(**smolvlm_inputs(writer, shown, query), **options)

    ways: dict[str, Callable[[Path], Any]] = {
        "reused": lambda query: task([query], **options),
        "whole prompt": whole,
        "SmolVLM": prompted,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():  # the first call of each is not counted
        way(queries[0])
        print(f"{name}: ready", flush=True)
    for turn in range(given.turns):
        for name, way in ways.items():
            query = queries[1 + turn]
            found[name].append(seconds(lambda way=way, query=query: way(query)))
    tokens = {
        "reused": len(processor.tokenize([written])[0]),
        "whole prompt": len(processor.tokenize([written])[0]),
        "SmolVLM": smolvlm_inputs(writer, shown, queries[0]).input_ids.shape[1],
    }
    fastest = median(found["reused"])
    print(f"\n| {given.shots} shots | tokens | seconds of the processor | of the fastest |\n|---|---:|---:|---:|")
    for name, times in found.items():
        print(f"| {name} | {tokens[name]:,} | {median(times):.2f} | {median(times) / fastest:.1f} |")
    split = smolvlm_inputs(writer, shown, queries[0], splitting=True).input_ids.shape[1]
    print(f"\nthe demonstrations of `reused`, computed once: {before:.2f} s")
    print(f"SmolVLM's prompt with splitting: {split:,} tokens, of a context of {CONTEXT:,}")


if __name__ == "__main__":
    main()

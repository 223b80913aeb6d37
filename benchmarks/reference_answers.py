"""A benchmark's worker that answers prompts with open_flamingo 2.0.1; runs in an environment of its own.

Prompts are built as its evaluation builds them: `vision_x` with every image of every row, texts padded on the left.
"""

from __future__ import annotations

from typing import Any

import reference_worker
import torch
from processes import peak_memory, serve, timed, watch_memory
from reference_worker import held

SHOT = "<image>Output:{}<|endofchunk|>"


def load(paths: dict[str, str], threads: int, cross_attn_every_n_layers: int) -> None:
    reference_worker.load(paths, threads, checkpoint=True, cross_attn_every_n_layers=cross_attn_every_n_layers)
    held["model"].eval()
    held["tokenizer"].padding_side = "left"


def prepare(images: str, asked: dict[str, Any]) -> None:
    """Ready to answer a work's prompts."""
    pixels = torch.load(images, weights_only=True)["pixels"]
    prompt = "".join(SHOT.format(shot) for shot in asked["demonstrations"]) + "<image>Output:"
    read = held["tokenizer"]([prompt] * len(asked["images"]), padding="longest", return_tensors="pt")
    held["asked"] = asked
    held["prompts"] = (pixels[torch.tensor(asked["images"])][:, :, None], read["input_ids"], read["attention_mask"])


def answer(candidates: int = 0) -> dict[str, Any]:
    """Answers all prompts: seconds, those of all cores; `output`: texts, or scores of the first `candidates`."""
    with torch.inference_mode():
        output, seconds = timed(lambda: _score(candidates) if candidates else _generate())
    return {**seconds, "output": output}


def _generate() -> list[str]:
    asked, (vision, ids, mask), texts = held["asked"], held["prompts"], []
    for start in range(0, len(ids), asked["batch_size"]):
        rows = slice(start, start + asked["batch_size"])
        out = held["model"].generate(vision[rows], ids[rows], mask[rows], **asked["generation"])
        texts += held["tokenizer"].batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def _score(candidates: int) -> list[list[float]]:
    """As its evaluation ranks classes with its cache: the context once, then the classes one after another."""
    model, (vision, ids, mask), found = held["model"], held["prompts"], []
    model.cache_media(input_ids=ids, vision_x=vision)
    context = model(vision_x=None, lang_x=ids, attention_mask=mask, clear_conditioned_layers=False, use_cache=True)
    for name in held["asked"]["candidates"][:candidates]:
        tokens = held["tokenizer"](name, add_special_tokens=False, return_tensors="pt")["input_ids"]
        tokens = tokens.repeat(len(ids), 1)
        out = model(
            vision_x=None, lang_x=tokens, attention_mask=None, clear_conditioned_layers=False,
            past_key_values=context.past_key_values,
        )  # fmt: skip
        logprobs = torch.log_softmax(torch.cat([context.logits, out.logits], dim=1), dim=-1)
        picked = logprobs[:, -tokens.shape[1] - 1 : -1].gather(2, tokens[:, :, None]).squeeze(-1)
        found.append(picked.sum(1))
    model.uncache_media()
    return torch.stack(found, 1).tolist()


def logits(file: str) -> None:
    """Writes those of each prompt's next token, (B, V) float32."""
    vision, ids, mask = held["prompts"]
    with torch.inference_mode():
        out = held["model"](vision, ids, mask)
    torch.save(out.logits[:, -1].clone(), file)


if __name__ == "__main__":
    functions = (load, prepare, answer, logits, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})

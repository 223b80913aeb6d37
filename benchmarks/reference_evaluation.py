"""A benchmark's worker that runs open_flamingo 2.0.1's own evaluation; runs in an environment of its own.

open_flamingo's package lacks the file that joins evaluation and model; `Answers` replaces it, and does the same.
Metrics are left out: they need Java, and their time is not measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import reference_worker
import torch
from processes import serve
from reference_worker import held

for missing in ("pycocoevalcap", "pycocoevalcap.eval", "pycocotools", "pycocotools.coco", "nltk", "inflection"):
    sys.modules.setdefault(missing, MagicMock())
for missing in ("nltk.corpus", "nltk.corpus.reader", "nltk.stem", "nltk.tokenize", "sklearn", "sklearn.metrics"):
    sys.modules.setdefault(missing, MagicMock())

import open_flamingo  # noqa: E402

sys.path.insert(0, str(Path(open_flamingo.__file__).parent / "eval"))
import evaluate as harness  # noqa: E402  (its evaluate.py)

LEFT_OUT = "left out"


class Answers:
    """The model, as the harness calls it; its time by parts."""

    device = "cpu"

    def __init__(self, model: Any, processor: Any, tokenizer: Any, most: int):
        self.model, self.processor, self.tokenizer = model, processor, tokenizer
        self.left, self.ended = most, 0.0  # queries to answer; when that was done
        tokenizer.padding_side = "left"
        self.seconds = {"media": 0.0, "prompt": 0.0, "decoding": 0.0}
        self._time(model, "_encode_vision_x", lambda arguments: "media")
        self._time(model.lang_encoder, "forward", lambda arguments: self._part(arguments))

    def _part(self, arguments: dict[str, Any]) -> str:
        return "prompt" if arguments["input_ids"].shape[1] > 1 else "decoding"

    def _time(self, module: Any, name: str, part: Any) -> None:
        plain = getattr(module, name)

        def timed(*given: Any, **arguments: Any) -> Any:
            began = time.perf_counter()
            out = plain(*given, **arguments)
            self.seconds[part(arguments)] += time.perf_counter() - began
            return out

        setattr(module, name, timed)

    def get_caption_prompt(self, caption: str | None = None) -> str:
        return f"<image>Output:{'' if caption is None else caption + '<|endofchunk|>'}"

    def get_outputs(
        self,
        batch_text: list[str],
        batch_images: list[list[Any]],
        min_generation_length: int,
        max_generation_length: int,
        num_beams: int,
        length_penalty: float,
    ) -> list[str]:
        if self.left <= 0:
            return [LEFT_OUT] * len(batch_text)
        began = time.perf_counter()
        vision = torch.zeros(len(batch_images), max(map(len, batch_images)), 1, 3, 224, 224)
        for row, images in zip(vision, batch_images, strict=True):
            for place, image in zip(row, images, strict=False):
                place[0] = self.processor(image)
        self.seconds["media"] += time.perf_counter() - began
        read = self.tokenizer(batch_text, padding="longest", truncation=True, return_tensors="pt", max_length=2000)
        with torch.inference_mode():
            out = self.model.generate(
                vision, read["input_ids"], read["attention_mask"], min_new_tokens=min_generation_length,
                max_new_tokens=max_generation_length, num_beams=num_beams, length_penalty=length_penalty,
            )  # fmt: skip
        self.left -= len(batch_text)
        self.ended = time.perf_counter()
        return self.tokenizer.batch_decode(out[:, read["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate(
    data: str, shots: int, queries: int, support: int, batch_size: int, seed: int, most: int
) -> dict[str, Any]:
    """Captions of a COCO data set: seconds, their parts, and the captions by the image's id. Ends after the batch with
    which `most` queries are answered, as if there were no more."""
    if not torch.distributed.is_initialized():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    captions: dict[str, str] = {}

    def keep(result_path: str, annotations_path: str) -> dict[str, float]:
        said = {
            str(one["image_id"]): one["caption"] for one in json.loads(Path(result_path).read_text(encoding="utf-8"))
        }
        captions.update({image: caption for image, caption in said.items() if caption != LEFT_OUT})
        return {"CIDEr": 0.0}

    harness.compute_cider = keep
    arguments = types.SimpleNamespace(
        coco_train_image_dir_path=f"{data}/train2014", coco_val_image_dir_path=f"{data}/val2014",
        coco_karpathy_json_path=f"{data}/dataset_coco.json", coco_annotations_json_path="", model="open_flamingo",
        num_samples=queries, batch_size=batch_size, rices=False, query_set_size=support, rank=0, world_size=1,
    )  # fmt: skip
    answers = Answers(held["model"].eval(), held["processor"], held["tokenizer"], most)
    began = time.perf_counter()
    harness.evaluate_captioning(arguments, answers, seed=seed, num_shots=shots)
    return {"seconds": answers.ended - began, "parts": answers.seconds, "captions": captions}


if __name__ == "__main__":
    functions = (reference_worker.load, evaluate, reference_worker.peak_memory)
    serve({function.__name__: function for function in functions} | {"watch_memory": reference_worker.watch_memory})

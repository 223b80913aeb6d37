"""Where a model's time goes, and the least time that the machine needs: seconds, operations and bytes of each part.

The parts of an answer are `vision` (the tower), `resampler` (with the keys and values of cross-attention, which are
computed once per image), `prefill` (the language model over texts that are read), `decoding` (over tokens that are
generated, or candidates that are scored), and `rest` (search, tokenizer, copies).
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from flamboyance.model.linear import linear

NAMES = ("vision", "resampler", "prefill", "decoding", "rest")
TIMERS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


class Parts:
    """Watches a Flamingo: what each part took since `begin`.

    Attributes:
        seconds, calls: of each part.
        operations: of its matrix products, while `counting` is set.
    """

    def __init__(self, model: Any, clock: str):
        self.now, self.counting = TIMERS[clock], False
        self.begin()
        self._watch(model.vision, "forward", lambda given: "vision")
        self._watch(model.resampler, "forward", lambda given: "resampler")
        self._watch(model, "_keys_values", lambda given: "resampler")
        self._watch(model, "forward", _phase)

    def begin(self) -> None:
        self.seconds, self.calls, self.operations = Counter[str](), Counter[str](), Counter[str]()
        self.began = self.now()

    def end(self) -> dict[str, float]:
        """Seconds by part, the rest included."""
        total = self.now() - self.began
        known = {name: self.seconds[name] for name in NAMES[:-1]}
        return {**known, "rest": total - sum(known.values())}

    def _watch(self, owner: Any, name: str, part: Callable[[dict[str, Any]], str]) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)  # generate reads the forward's signature
        def watched(*given: Any, **named: Any) -> Any:
            of, began = part(named), self.now()
            out = self._counted(of, plain, given, named) if self.counting else plain(*given, **named)
            self.seconds[of] += self.now() - began
            self.calls[of] += 1
            return out

        setattr(owner, name, watched)

    def _counted(self, part: str, plain: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            out = plain(*given, **named)
        self.operations[part] += counter.get_total_flops()
        return out


def _phase(given: dict[str, Any]) -> str:
    """Texts that are read want the logits of their last token; a generated token is one; a candidate wants all."""
    read = given["input_ids"].shape[1] > 1 and given.get("logits_to_keep", 0)
    return "prefill" if read else "decoding"


def _attention_operations(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _linear_operations(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


# torch counts the fused attention of accelerators only, and not oneDNN's linear layers.
UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
    torch.ops.mkldnn._linear_pointwise: _linear_operations,
}


def weight_bytes(model: Any) -> dict[str, int]:
    """Bytes of weights that one call of each part reads.

    Reading a text and decoding take the language model's layers and head, and the gated blocks but for their keys'
    and values' projection, whose results are kept. A table of embeddings is looked up in, not read.
    """
    head = model.get_output_embeddings()
    tables = [m for m in model.language_model.modules() if isinstance(m, nn.Embedding) and m.weight is not head.weight]
    keys_values = _bytes(*(block.attention.to_kv for block in model.blocks))
    text = _bytes(model.language_model) - _bytes(*tables)
    text += _bytes(model.cross_attention) - keys_values + _bytes(model.added_tokens)
    # The resampler's two calls, latents and then keys and values, are counted as halves.
    resampler = (_bytes(model.resampler) + keys_values) // 2
    return {"vision": _bytes(model.vision), "resampler": resampler, "prefill": text, "decoding": text}


def _bytes(*modules: nn.Module) -> int:
    return sum(p.nbytes for p in {p for module in modules for p in module.parameters()})


def cache_bytes(model: Any) -> dict[str, int]:
    """Bytes that a model keeps: keys and values of one token, and latents with theirs of one image."""
    text, width = model.config.text_config, model.dtype.itemsize
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    latents, features = model.resampler.latents.shape
    inner = sum(block.attention.to_kv.out_features for block in model.blocks)
    image = latents * inner * width
    return {
        "token": 2 * text.num_hidden_layers * heads * head_dim * width,
        "image_keys_values": image,
        "image": image + latents * features * width,
    }


def floor(operations: float, nbytes: float, rates: dict[str, float]) -> float:
    """Seconds below which the machine cannot be: its products or its memory, whichever takes longer.

    Args:
        rates: `matrix`, operations a second; `memory`, bytes a second.
    """
    return max(operations / rates["matrix"], nbytes / rates["memory"])


def machine_rates(precision: str, clock: str, side: int = 2048, seconds: float = 1.0) -> dict[str, float]:
    """The machine's ceilings, measured now: operations a second of a large square product, by the faster of torch's and
    oneDNN's, and bytes a second of memory."""
    a = torch.randn(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    big, copy = torch.zeros(2, 2**26)  # 256 MiB each: beyond any cache
    return {
        "matrix": 2
        * side**3
        / min(_fastest(lambda: a @ a, clock, seconds), _fastest(lambda: linear(a, a), clock, seconds)),
        "memory": max(
            big.nbytes / _fastest(lambda: torch.dot(big, big), clock, seconds / 2),
            2 * big.nbytes / _fastest(lambda: copy.copy_(big), clock, seconds / 2),
        ),
    }


def _fastest(work: Callable[[], Any], clock: str, seconds: float) -> float:
    now, best = TIMERS[clock], float("inf")
    work()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = now()
        work()
        best = min(best, now() - began)
    return best

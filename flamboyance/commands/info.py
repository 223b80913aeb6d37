"""`info`: a model's parts, trainable parameters, memory and gates."""

import argparse
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from flamboyance.commands.arguments import DTYPES, add_model, at_least
from flamboyance.commands.models import model_name

EPILOG = "Released models are not downloaded. flamingo-3b, -9b and -80b are the original's sizes, without weights.\n"


Gates = list[tuple[float, float]]
"""Of each block: the gates of attention and feed-forward, before tanh."""


@dataclass(frozen=True)
class Part:
    """One row of the table: a part of a model, its parameters, and its bytes with buffers."""

    name: str
    what: str
    parameters: int
    trained: int
    bytes: int
    dtype: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument("name", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument("--json", action="store_true", help="parts, parameters, bytes, gates and versions as JSON")
    add_model(parser, device=False)
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--dtype", choices=DTYPES[1:], help="of what is not quantized (default: that of the trained part)"
    )
    group.add_argument("--shots", type=at_least(0), default=4, metavar="N", help="of the counted prompt (default: 4)")
    group.add_argument(
        "--kind", metavar="KIND", help="whether it fits: T4, L4, RTX4090, …, as for `plan`; cpu; a memory such as 16GB"
    )


def info(arguments: argparse.Namespace) -> int:
    """Print a table of a model's parts, and its gates if its weights are on this machine."""
    from flamboyance.planning.inference import inference_memory
    from flamboyance.training.hardware import find as find_hardware

    name = arguments.name or model_name(arguments)
    if arguments.name and arguments.model and arguments.name != arguments.model:
        raise ValueError(f"two models are named, {arguments.name} and --model {arguments.model}; give one")
    model, gates = outline(name, arguments.quantize, arguments.dtype)
    hardware = find_hardware(arguments.kind or "cpu")
    figures, table = as_json(name, model, gates), _table(name, parts(model))
    weights = _memory(model)
    needed = inference_memory(model, arguments.shots, hardware)
    if arguments.json:
        memory = asdict(needed) | {"tensors": needed.tensors, "total": needed.total, "capacity": hardware.memory}
        figures["inference"] = {"shots": arguments.shots, "kind": hardware.name, **memory}
        print(json.dumps(figures, indent=1))
        return 0
    from rich.console import Console

    console = Console()
    console.print(table)
    console.print(weights)
    console.print(_inference(needed, arguments.shots, hardware, bool(arguments.kind)))
    if gates:
        console.print(_gates(model.cross_attention_layers, gates))
    else:
        console.print("Gates are shown only for models whose weights are on this machine.")
    return 0


def outline(name: str, quantize: str | None = None, dtype: str | None = None) -> tuple[Any, Gates | None]:
    """The model without weights, and its gates if its weights are on this machine.

    Args:
        quantize: the scheme of the frozen parts' weights; None: as the model was saved.
        dtype: name of the precision of the others; None: that of the trained ones.
    """
    import torch

    from flamboyance import catalog
    from flamboyance.checkpoints.directory import WEIGHTS, read_weights
    from flamboyance.model.adapters import canonical

    entry = catalog.resolve(name)
    model = entry.outline(quantize=quantize)
    if entry.kind in ("released", "original"):
        return model.to(getattr(torch, dtype or "float32")), None
    trained = {canonical(tensor): value for tensor, value in read_weights(entry.files() / WEIGHTS)[0].items()}
    blocks = [f"cross_attention.{number}" for number in range(len(model.cross_attention))]
    gates = [(float(trained[f"{b}.attention_gate"]), float(trained[f"{b}.feed_forward_gate"])) for b in blocks]
    return model.to(getattr(torch, dtype) if dtype else trained["resampler.latents"].dtype), gates


def as_json(name: str, model: Any, gates: Any) -> dict[str, Any]:
    """The content of the tables as numbers, with gates after tanh (None without weights); and the versions in use."""
    rows = parts(model)
    counts = {row.name: row.parameters for row in rows}
    counts["language"] = counts.pop("language_model")
    spliced = zip(model.cross_attention_layers, gates or (), strict=False)
    return {
        "model": name,
        "parts": [asdict(row) for row in rows],
        "parameters": {"total": sum(counts.values()), "trainable": sum(row.trained for row in rows), **counts},
        "bytes": sum(row.bytes for row in rows),
        "layers": list(model.cross_attention_layers),
        "gates": gates
        and [
            {"before_layer": layer, "attention": math.tanh(attention), "feed_forward": math.tanh(feed_forward)}
            for layer, (attention, feed_forward) in spliced
        ],
        "versions": {name: version(name) for name in ("flamboyance", "torch", "transformers")}
        | {"python": platform.python_version(), "platform": platform.platform()},
    }


def parts(model: Any) -> list[Part]:
    """The parts of a FlamingoForConditionalGeneration, in the order in which data pass through them."""
    config, vision = model.config, model.config.vision
    language = config.text_config
    tower = ", ".join(str(v) for v in (vision["library"], vision["name"], vision["pretrained"]) if v)
    sizes = config.resampler
    ids = range(config.base_vocab_size, config.base_vocab_size + len(config.added_tokens))
    layers = _ranges(model.cross_attention_layers)
    trained = set(model.trained_parameters())
    every = "" if config.cross_attention_layers else f" ({config.placement})"
    blocks = f"{len(model.cross_attention_layers)} blocks, before layers {layers}{every}"
    tokens = ", ".join(f"{token} {number}" for token, number in zip(config.added_tokens, ids, strict=True))
    lm = f"{language.num_hidden_layers} layers of width {language.hidden_size}"
    described = {
        "vision": f"{tower}: patches of width {config.vision_width}",
        "resampler": f"{sizes['depth']} layers, {sizes['latents']} latents of width {config.media_width} per image",
        "cross_attention": blocks,
        "added_tokens": tokens,
        "language_model": f"{language.model_type} {config.language or ''}: {lm}",
    }
    return [_part(name, what, getattr(model, name), trained) for name, what in described.items()]


def _part(name: str, what: str, module: Any, trained: set[str]) -> Part:
    from flamboyance.model.quantized_linear import count, layers

    parameters = dict(module.named_parameters())
    kinds = {str(p.dtype).removeprefix("torch.") for p in parameters.values()}
    tensors = [*parameters.values(), *module.buffers()]
    return Part(
        name,
        what,
        count(module),
        sum(p.numel() for key, p in parameters.items() if f"{name}.{key}" in trained),
        sum(t.numel() * t.element_size() for t in tensors),
        ", ".join(sorted(kinds | {f"int{layer.bits}" for _, layer in layers(module)})),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`0–23` for a run, `3, 7, …, 31` for steps."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    if len(numbers) > 4 and len({after - before for before, after in pairwise(numbers)}) == 1:
        return f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _table(title: str, rows: Sequence[Part]) -> Any:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    dtypes = ", ".join(sorted({row.dtype for row in rows}))
    table = Table(title=escape(title), title_justify="left", show_footer=True, box=SIMPLE)
    table.add_column("part", footer="total", no_wrap=True)
    table.add_column("made of", overflow="fold")
    for column, total in (
        ("parameters", _count(sum(r.parameters for r in rows))),
        ("trainable", _count(sum(r.trained for r in rows))),
        (f"as {dtypes}", _size(sum(r.bytes for r in rows))),
    ):
        table.add_column(column, justify="right", footer=total, no_wrap=True)
    for row in rows:
        trained = _count(row.trained) if row.trained else "frozen"
        table.add_row(row.name, escape(row.what), _count(row.parameters), trained, _size(row.bytes))
    return table


def _memory(model: Any) -> str:
    tensors = [*model.parameters(), *model.buffers()]
    whole = sum(t.numel() for t in tensors if t.dtype == model.dtype)
    packed = (
        sum(t.numel() * t.element_size() for t in tensors if t.dtype != model.dtype) if model.config.quantize else 0
    )
    trained = sum(p.numel() for p in model.trained_parameters().values())
    weights = f"Weights take {_size(packed + 4 * whole)} as float32, {_size(packed + 2 * whole)} as bfloat16."
    if model.config.quantize:
        weights = f"With {model.config.quantize} for the frozen linear layers, w{weights[1:]}"
    adam = f"Training with Adam adds {_size(12 * trained)}: gradients and two moments of the trainable parameters."
    return f"{weights}\n{adam}"


def _inference(needed: Any, shots: int, hardware: Any, asked: bool) -> str:
    from flamboyance.planning.inference import TEXT

    prompt = f"{shots + 1} images and {TEXT * (shots + 1)} tokens"
    said = (
        f"Answering a prompt of {shots} shots ({prompt}, greedy) needs {_size(needed.tensors)}: weights "
        f"{_size(needed.weights)}, cache and images {_size(needed.kept)}, activations {_size(needed.working)}."
    )
    if not asked:
        return said
    fits = "fits" if needed.total <= hardware.memory else "does not fit"
    beside = f"{_size(needed.reserve)} for driver and libraries and {_size(needed.fragments)} between blocks"
    return f"{said}\nWith {beside} that is {_size(needed.total)}: it {fits} {hardware.name}, {_size(hardware.memory)}."


def _gates(layers: Sequence[int], gates: Sequence[tuple[float, float]]) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title="gates: tanh of each block's two", title_justify="left", box=SIMPLE)
    for column in ("before layer", "attention", "feed-forward"):
        table.add_column(column, justify="right")
    for layer, (attention, feed_forward) in zip(layers, gates, strict=True):
        table.add_row(str(layer), f"{math.tanh(attention):+.4f}", f"{math.tanh(feed_forward):+.4f}")
    return table


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def _size(number: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"

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

from flamboyance.commands.arguments import add_model
from flamboyance.commands.models import model_name

EPILOG = "Released models are not downloaded.\n"


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


def info(arguments: argparse.Namespace) -> int:
    """Print a table of a model's parts, and its gates if its weights are on this machine."""
    name = arguments.name or model_name(arguments)
    if arguments.name and arguments.model and arguments.name != arguments.model:
        raise ValueError(f"two models are named, {arguments.name} and --model {arguments.model}; give one")
    model, gates = outline(name)
    if arguments.json:
        print(json.dumps(as_json(name, model, gates), indent=1))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(name, parts(model)))
    console.print(_memory(model))
    if gates:
        console.print(_gates(model.cross_attention_layers, gates))
    else:
        console.print("Gates are shown only for models whose weights are on this machine.")
    return 0


def outline(name: str) -> tuple[Any, Gates | None]:
    """The model without weights, in the precision of its trained ones; and its gates if those are on this machine."""
    from flamboyance import catalog
    from flamboyance.checkpoints.directory import WEIGHTS, read_weights
    from flamboyance.model.adapters import canonical

    entry = catalog.resolve(name)
    model = entry.outline()
    if entry.kind == "released":
        return model, None
    trained = {canonical(tensor): value for tensor, value in read_weights(entry.files() / WEIGHTS)[0].items()}
    blocks = [f"cross_attention.{number}" for number in range(len(model.cross_attention))]
    gates = [(float(trained[f"{b}.attention_gate"]), float(trained[f"{b}.feed_forward_gate"])) for b in blocks]
    return model.to(trained["resampler.latents"].dtype), gates


def as_json(name: str, model: Any, gates: Any) -> dict[str, Any]:
    """The content of the tables as numbers, with gates after tanh (None without weights); and the versions in use."""
    rows = parts(model)
    spliced = zip(model.cross_attention_layers, gates or (), strict=False)
    return {
        "model": name,
        "parts": [asdict(row) for row in rows],
        "parameters": sum(row.parameters for row in rows),
        "trainable_parameters": sum(row.trained for row in rows),
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
    parameters = dict(module.named_parameters())
    tensors = [*parameters.values(), *module.buffers()]
    return Part(
        name,
        what,
        sum(p.numel() for p in parameters.values()),
        sum(p.numel() for key, p in parameters.items() if f"{name}.{key}" in trained),
        sum(t.numel() * t.element_size() for t in tensors),
        ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})),
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
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.trained_parameters().values())
    weights = f"Weights take {_size(4 * total)} as float32, {_size(2 * total)} as bfloat16."
    adam = f"Training with Adam adds {_size(12 * trained)}: gradients and two moments of the trainable parameters."
    return f"{weights}\n{adam}"


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

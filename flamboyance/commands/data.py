"""`data`: what a source of training data holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import at_least

if TYPE_CHECKING:
    from flamboyance.data.documents import Source
    from flamboyance.data.survey import Survey

BAR = 40  # characters of the longest bar
EPILOG = """\
formats (--format; default: by the first record):
  own      a folder, a table or tars of your own: `train finetune` and `train new`
  pairs    tars of KEY.jpg and KEY.txt, as img2dataset writes them
  mmc4     tars or JSONL files of text_list and image_info
  obelics  Parquet files of images and texts
  chatgpt  tars or JSONL files of example and image_map

Records are read as training reads them: decoded, cut to the format's limits, and dropped for the same reasons.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folders, tables (.csv, .jsonl, .parquet, …) or tars; * and {000..099} are read",
    )
    parser.add_argument(
        "--format", choices=("own", "pairs", "mmc4", "obelics", "chatgpt"), help="default: by the first record"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the format, as max_tokens=128"
    )
    parser.add_argument("--records", type=at_least(1), metavar="N", help="the first N records (default: all)")
    parser.add_argument(
        "--model", default="mini", metavar="NAME|DIR", help="whose tokens and image size are used (default: mini)"
    )
    parser.add_argument("--page", metavar="FILE", help="write samples as the model would see them, an .html file")
    parser.add_argument("--samples", type=at_least(1), default=12, metavar="N", help="on the page (default: 12)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def data(arguments: argparse.Namespace) -> int:
    """Survey a source; 1 if no document can be used."""
    from flamboyance import catalog
    from flamboyance.data.examples import WorkerProcessor
    from flamboyance.data.survey import survey

    if arguments.page and Path(arguments.page).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--page {arguments.page}: expected a file that ends in .html")
    kind, source = source_of(arguments.source, arguments.format, arguments.set)
    entry = catalog.resolve(arguments.model)
    worker = WorkerProcessor.of(entry.processor(), frames=entry.config().resampler["max_frames"])
    found = survey(source, worker, arguments.records, arguments.samples)
    if arguments.json:
        print(json.dumps(as_json(found, kind, arguments.model), indent=1))
    else:
        print("\n".join(lines(found, kind, arguments.model)))
    if arguments.page:
        from flamboyance.reports.data_page import write_page

        write_page(Path(arguments.page), found, worker, f"{', '.join(arguments.source)} ({kind})")
        print(f"samples are in {arguments.page}", file=sys.stderr)
    return 0 if found.documents else 1


def source_of(shards: Sequence[str], kind: str | None, settings: Sequence[str]) -> tuple[str, Source]:
    """The format and the source.

    Raises:
        ValueError: shards that are not found, or a setting that the format does not have.
    """
    from flamboyance.data.survey import FORMATS, format_of
    from flamboyance.recipes.arguments import convert, fields

    kind = kind or format_of(tuple(shards))
    source = FORMATS[kind](shards=tuple(shards), batch_size=1)
    known = fields(source)
    values: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or key not in known:
            raise ValueError(f"invalid setting {setting!r}: expected key=value, where {kind} has {', '.join(known)}")
        values[key] = convert(value, known[key].kind, key)
    return kind, replace(source, **values)


def as_json(found: Survey, kind: str, model: str) -> dict[str, Any]:
    """Everything that `lines` shows, and the settings."""
    from flamboyance.data.survey import image_bars, token_bars

    return {
        "format": kind,
        "model": model,
        "settings": {key: value for key, value in asdict(found.source).items() if key != "batch_size"},
        "records": found.records,
        "whole": found.whole,
        "documents": found.documents,
        "videos": found.videos,
        "dropped": dict(found.drops.most_common()),
        "images": summary(found.images) | {"histogram": dict(image_bars(found.images))},
        "tokens": summary(found.tokens) | {"histogram": dict(token_bars(found.tokens))},
        "kept_images": summary(found.kept_images),
        "kept_tokens": summary(found.kept_tokens),
        "learned_tokens": summary(found.learned),
    }


def summary(counts: Sequence[int]) -> dict[str, float]:
    """Total, mean, median, 90th percentile and largest; empty without any."""
    import numpy as np

    if not counts:
        return {}
    return {
        "total": int(sum(counts)),
        "mean": float(np.mean(counts)),
        "median": float(np.median(counts)),
        "p90": float(np.percentile(counts, 90)),
        "max": int(max(counts)),
    }


def lines(found: Survey, kind: str, model: str) -> list[str]:
    """The survey as text."""
    from flamboyance.data.survey import image_bars, token_bars

    share = f" ({100 * found.documents / found.records:.1f} %)" if found.records else ""
    shown = [
        f"format: {kind}; tokens of {model}",
        f"{found.documents:,} documents of {found.records:,} records{share}"
        + ("" if found.whole else ", the first ones"),
    ]
    if found.videos:
        shown.append(f"{found.videos:,} videos among the images")
    rows = (
        ("images, as stored", found.images), ("images, cut", found.kept_images), ("tokens, as stored", found.tokens),
        ("tokens, cut", found.kept_tokens), ("tokens, learned", found.learned),
    )  # fmt: skip
    if found.documents:
        shown += ["", f"{'of a document':20}{'median':>10}{'mean':>10}{'90 %':>10}{'most':>10}{'in all':>16}"]
        for name, counts in rows:
            of = summary(counts)
            shown.append(
                f"{name:20}{of['median']:>10,.0f}{of['mean']:>10,.1f}{of['p90']:>10,.0f}{of['max']:>10,}{of['total']:>16,}"
            )
    for title, bars in (("images", image_bars(found.images)), ("tokens", token_bars(found.tokens))):
        if bars:
            shown += ["", f"documents by {title}, as stored", *_drawn(bars)]
    if found.drops:
        shown += ["", "dropped", *_drawn(found.drops.most_common())]
    return shown


def _drawn(bars: Sequence[tuple[str, int]]) -> list[str]:
    most, width = max(count for _, count in bars), max(len(name) for name, _ in bars)
    return [f"  {name:{width}} {count:>10,} {'#' * round(BAR * count / most)}".rstrip() for name, count in bars]

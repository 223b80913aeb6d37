"""A dataset of Hugging Face as a task: `hf:NAME[SPLIT]`, by the package `datasets`.

    hf:cifar10[test]                  the split of a dataset on the hub
    hf:NAME[CONFIGURATION/test]       of one of its configurations
    hf:NAME[train[:500]]              the first 500 rows
    hf:path/to/folder[train]          of a folder that load_dataset or load_from_disk reads; a single split, as
                                      save_to_disk writes it, has the name that it was saved with, or else train

Its columns are those of a file of one's own (see user_data.py): image, label, text, captions, question, answer,
answers, answer_type, question_type; other names are given as `columns`. Numbers of classes become their names. Images
are written as files, named by their content, because demonstrations, features and reports refer to files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from flamboyance.evaluation.data_folders import user_cache
from flamboyance.evaluation.task import Task
from flamboyance.evaluation.tasks import user_data
from flamboyance.evaluation.tasks.protocols import check_protocol
from flamboyance.files import replacing
from flamboyance.images.listing import Row
from flamboyance.images.loading import opened
from flamboyance.images.suffixes import SUFFIXES

PREFIX = "hf:"
COLUMNS = ("image", "label", "text", "captions", "question", "answer", "answers", "answer_type", "question_type")
_NAMED = re.compile(r"hf:([^\[\]]+)\[(?:([^\[\]/]+)/)?([^/]+)\]")


def load(
    name: str,
    columns: Mapping[str, str] | None = None,
    support: str | None = None,
    protocol: str = "papers",
    folder: Path | None = None,
) -> Task:
    """The task of a dataset.

    Args:
        name: as above: the queries.
        columns: our names -> the dataset's, as {"image": "picture", "label": "species"}; "left+right" for several
            images.
        support: the split to choose demonstrations from, as above, or the file of one's own; default: the queries, of
            which a query is never shown its own image.
        folder: where the images are written; default: in the user's cache folder.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: the name is wrong, or the dataset lacks a column, or a value is missing. The message names it.
        OSError: there is no such dataset.
    """
    check_protocol(protocol)
    home = folder or user_cache() / "hf"
    asked = (Path(name), _rows(name, columns or {}, home))
    shown = None
    if support is not None and not support.startswith(PREFIX):
        raise ValueError(f"--support {support}: expected a split of a dataset, as hf:NAME[SPLIT], for {name}")
    if support is not None:
        shown = (Path(support), _rows(support, columns or {}, home))
    title = re.sub(r"[^\w.-]", "-", _parts(name)[0].rstrip("/").rpartition("/")[2]) or "dataset"
    return user_data.from_rows(title, asked, shown, None, protocol)


def _parts(name: str) -> tuple[str, str | None, str]:
    """The name, configuration and split."""
    match = _NAMED.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} names no split of a dataset; expected hf:NAME[SPLIT], as hf:cifar10[test]")
    return match[1], match[2], match[3]


def _rows(name: str, columns: Mapping[str, str], folder: Path) -> list[Row]:
    dataset = _opened(name)
    wrong = [ours for ours in columns if ours not in COLUMNS]
    if wrong:
        raise ValueError(f"--columns {wrong[0]}={columns[wrong[0]]}: expected one of {', '.join(COLUMNS)} before '='")
    there = {ours: columns.get(ours, ours) for ours in COLUMNS}
    images = there.pop("image").split("+")
    missing = [
        f"{ours}={one}"
        for ours, theirs in columns.items()
        for one in theirs.split("+")
        if one not in dataset.column_names
    ]
    if images[0] not in dataset.column_names or missing:
        what = f"--columns {missing[0]}: {name}" if missing else f"{name} has no column 'image':"
        raise ValueError(
            f"{what} has the columns {', '.join(dataset.column_names)}; expected image=THEIRS,label=THEIRS"
        )
    there = {ours: theirs for ours, theirs in there.items() if theirs in dataset.column_names}
    dataset = dataset.select_columns(list(dict.fromkeys([*images, *there.values()])))
    labels = {ours: _class_names(dataset.features[theirs]) for ours, theirs in there.items()}
    for column in images:
        dataset = _undecoded(dataset, column, name)
    rows = []
    for number, record in enumerate(dataset):
        place = f"{name}, row {number}"
        first, *further = (_file(record[column], folder, place) for column in images)
        values = {ours: record[theirs] for ours, theirs in there.items()}
        for ours, names in labels.items():
            if names is not None and ours in values:
                values[ours] = _class_name(values[ours], names, place)
        rows.append(Row(place, first, values, tuple(further)))
    if not rows:
        raise ValueError(f"{name} has no rows")
    return rows


def _opened(name: str) -> Any:
    """The split of the dataset."""
    try:
        import datasets  # not needed for anything else
    except ImportError as error:
        raise ImportError(f"{name} needs the package datasets: pip install 'flamboyance[datasets]'") from error
    path, configuration, split = _parts(name)
    try:
        if any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            if configuration:
                raise ValueError(f"a saved dataset has no configurations, such as {configuration!r}")
            return _part(datasets.load_from_disk(path), split)
        return datasets.load_dataset(path, configuration, split=split)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} cannot be opened: {error}") from None


def _part(saved: Any, split: str) -> Any:
    """The rows of a saved dataset that a split names, such as "train[:500]" or "train+test".

    Raises:
        ValueError: it has no such split.
    """
    import datasets

    if not isinstance(saved, datasets.DatasetDict):
        own = re.split(r"[\[+]", str(saved.split or "train"))[0]  # of a part of a split, the split's name
        saved = {own: saved}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({one: len(rows) for one, rows in saved.items()})
    return datasets.concatenate_datasets([saved[one.splitname].select(range(one.from_, one.to)) for one in parts])


def _class_names(feature: Any) -> list[str] | None:
    """The names of the classes that a column's numbers mean."""
    names = getattr(feature, "names", None)
    return list(names) if names else None


def _class_name(value: Any, names: list[str], place: str) -> str:
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(f"{place}: the class is {value!r}; expected a number from 0 to {len(names) - 1}")
    return names[value]


def _undecoded(dataset: Any, column: str, name: str) -> Any:
    """The dataset with the bytes of its images, not their pixels."""
    from datasets import Image as ImageFeature

    if not isinstance(dataset.features[column], ImageFeature):
        kind = type(dataset.features[column]).__name__
        raise ValueError(f"{name}: the column {column!r} holds {kind}; expected images (--columns image=THEIRS)")
    return dataset.cast_column(column, ImageFeature(decode=False))


def _file(found: Any, folder: Path, place: str) -> Path:
    """The image's file; its bytes are written if the dataset holds them."""
    content, path = (found or {}).get("bytes"), (found or {}).get("path")
    if content is None and path and Path(path).is_file():
        return Path(path)
    if not content:
        raise ValueError(f"{place} has no image")
    digest = blake2b(content, digest_size=16).hexdigest()
    suffix = Path(path or "").suffix.lower()
    file = folder / digest[:2] / f"{digest}{suffix if suffix in SUFFIXES else _suffix(content, place)}"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            Path(part).write_bytes(content)
    return file


def _suffix(content: bytes, place: str) -> str:
    try:
        with opened(io.BytesIO(content)) as image:
            kind = f".{(image.format or 'png').lower()}"
    except OSError as error:
        raise ValueError(f"{place}: the image cannot be read ({error})") from None
    return kind if kind in SUFFIXES else ".png"  # readers look at the content

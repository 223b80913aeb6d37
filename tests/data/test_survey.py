"""`flamboyance data`: its figures are those of a recount, on good data and on the torture set."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamboyance import FlamingoProcessor
from flamboyance.cli import main
from flamboyance.data.examples import WorkerProcessor
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.survey import format_of, image_bars, survey, token_bars
from flamboyance.images import ImageProcessor
from flamboyance.reports.data_page import write_page
from tests.data.files import tar_bytes
from tests.data.formats.test_conversations import merging_tokenizer
from tests.data.records import RED
from tests.data.torture import write
from tests.tiny import tiny_tokenizer

WORKER = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer()))
WORDS = "a red blue green square circle cat dog yes no".split()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A JSONL file of 40 documents, one of which has a missing image and one no text; and the numbers of words after
    each image of the good ones."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / f"{number}.png")
    lines, good = [], []
    for _ in range(38):
        lengths = rng.integers(1, 9, rng.integers(1, 5)).tolist()
        texts = [" ".join(rng.choice(WORDS, length)) for length in lengths]
        images = [f"{number}.png" for number in rng.integers(0, 5, len(lengths))]
        lines.append({"text": "".join(f"<image>{text}" for text in texts), "images": images})
        good.append(lengths)
    lines.insert(7, {"image": "gone.png", "text": "a cat"})
    lines.insert(20, {"image": "0.png", "text": ""})
    (folder / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder / "documents.jsonl", good


def test_figures_are_those_of_a_recount(documents: tuple[Path, list[list[int]]]) -> None:
    file, good = documents
    found = survey(UserData(shards=str(file), batch_size=1, max_images=3, max_tokens=20), WORKER)
    assert (found.records, found.documents, found.whole) == (40, 38, True)
    assert dict(found.drops) == {"missing image": 1, "no text": 1}
    assert found.images == [len(lengths) for lengths in good]
    # `<image>`, its words and `<|endofchunk|>`, and one end of text
    assert found.tokens == [sum(length + 2 for length in lengths) + 1 for lengths in good]
    assert all(kept == min(stored, 20) or images > 3 for kept, stored, images in zip(
        found.kept_tokens, found.tokens, found.images, strict=True))  # fmt: skip
    assert max(found.kept_images) == 3 and max(found.kept_tokens) == 20
    assert len({key for key, _ in found.samples}) == 12
    assert survey(UserData(shards=str(file), batch_size=1), WORKER).samples[3][0] == found.samples[3][0]


def test_a_text_is_tokenized_once(documents: tuple[Path, list[list[int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    tokens = WorkerProcessor.tokens
    monkeypatch.setattr(WorkerProcessor, "tokens", lambda own, text: texts.append(text) or tokens(own, text))
    survey(UserData(shards=str(documents[0]), batch_size=1), WORKER)
    assert len(texts) == 38


@pytest.mark.parametrize("name", ["pairs", "pages"])
def test_the_torture_set_is_counted(name: str, tmp_path: Path) -> None:
    given = write(tmp_path / "torture")[name]
    found = survey(given.source, WORKER)
    assert found.documents == given.documents and dict(found.drops) == given.drops
    if name == "pairs":  # `<image>`, four words, `<|endofchunk|>`, and the end of text; all but the first is learned
        assert found.images == found.kept_images == [1] * 18
        assert found.tokens == found.kept_tokens == [7] * 18 and found.learned == [6] * 18
        return
    # Pages 00, 01, 04 and 13. Of 200 images six are kept, each with its sentence of three words: it does not end there.
    assert found.images == [1, 2, 200, 2] and found.kept_images == [1, 2, 6, 2]
    words = [9, 9, 603, 9]  # in three, three, 201 and three sentences
    assert found.tokens == [2 * images + count + 1 for images, count in zip(found.images, words, strict=True)]
    assert found.kept_tokens == [12, 14, 6 * 5, 14]
    # After each image its text and `<|endofchunk|>`: not `<image>`, nor the end of text.
    assert found.learned == [10, 11, 6 * 4, 11]


@pytest.mark.parametrize("name", ["pairs", "pages"])
def test_the_command_tells_the_same_of_the_torture_set(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(tmp_path / "torture")[name]
    shards = [given.source.shards] if isinstance(given.source.shards, str) else list(given.source.shards)
    settings = ["reject_single=0", "min_image_bytes=0"] if name == "pages" else []
    assert run("data", *shards, "--json", *(word for one in settings for word in ("--set", one))) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == {"pairs": "pairs", "pages": "mmc4"}[name]
    assert told["documents"] == given.documents and told["dropped"] == given.drops
    expected = [1] * 18 if name == "pairs" else [1, 2, 200, 2]
    figures = {"total": sum(expected), "mean": np.mean(expected), "median": np.median(expected), "max": max(expected)}
    assert {key: told["images"][key] for key in figures} == figures
    assert told["images"]["p90"] == pytest.approx(np.percentile(expected, 90))
    bars = {"1": 18} if name == "pairs" else {"1": 1, "2": 2, "10 or more": 1}
    assert {key: count for key, count in told["images"]["histogram"].items() if count} == bars
    assert sum(told["tokens"]["histogram"].values()) == given.documents
    assert main(["data", *shards, *(word for one in settings for word in ("--set", one))]) == 0
    shown = capsys.readouterr().out
    for reason, count in given.drops.items():
        assert re.search(rf"^  {re.escape(reason)} +{count} #+$", shown, re.M), reason


def test_the_first_records(documents: tuple[Path, list[list[int]]]) -> None:
    found = survey(UserData(shards=str(documents[0]), batch_size=1), WORKER, most=10, samples=3)
    assert (found.records, found.documents, found.whole, len(found.samples)) == (10, 9, False, 3)
    assert survey(UserData(shards=str(documents[0]), batch_size=1), WORKER, most=40).whole


def test_every_document_is_equally_likely_to_be_a_sample(documents: tuple[Path, list[list[int]]]) -> None:
    source = UserData(shards=str(documents[0]), batch_size=1)
    lines = [int(key.rpartition(":")[2]) for seed in range(12) for key, _ in survey(source, WORKER, seed=seed).samples]
    assert len(set(lines)) > 30 and 15 < np.mean(lines) < 26


def test_bars_hold_every_document_once() -> None:
    assert image_bars([1, 1, 3, 12, 10]) == [
        *(("1", 2), ("2", 0), ("3", 1), ("4", 0), ("5", 0), ("6", 0), ("7", 0), ("8", 0), ("9", 0)), ("10 or more", 2)
    ]  # fmt: skip
    assert token_bars([16, 17, 32, 33, 65]) == [("1 to 16", 1), ("17 to 32", 2), ("33 to 64", 1), ("65 to 128", 1)]
    assert token_bars([5000])[-1] == ("over 4096", 1)
    assert image_bars([]) == token_bars([]) == []


def test_formats_are_told_apart(documents: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    page = json.dumps({"text_list": [], "image_info": []}).encode()
    sequence = json.dumps({"example": "", "image_map": {}}).encode()
    own = json.dumps({"image": "jpg", "text": "a"}).encode()
    tars: dict[str, list[tuple[str, bytes]]] = {
        "mmc4": [("0.json", page)],
        "chatgpt": [("0.json", b"{"), ("1.json", sequence)],
        "pairs": [("0.jpg", b"x"), ("0.txt", b"a cat")],
        "own": [("0.jpg", b"x"), ("0.json", own)],
    }
    for kind, files in tars.items():
        (tmp_path / f"{kind}.tar").write_bytes(tar_bytes(files))
        assert format_of(str(tmp_path / f"{kind}.tar")) == kind
    assert format_of(str(documents[0])) == "own"


def test_the_page_shows_what_the_model_sees(documents: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    found = survey(UserData(shards=str(documents[0]), batch_size=1), WORKER, samples=5)
    write_page(tmp_path / "a.html", found, WORKER, "<documents>")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 5 and "<h1>&lt;documents&gt;</h1>" in page
    assert page.count("<img ") == sum(len(example.images) for _, example in found.samples)
    first = found.samples[0][1]
    shown = re.sub(r"<[^>]*>", " ", page[page.index("<section>") : page.index("</section>")])
    words = [word for word in WORKER.tokenizer.decode(first.input_ids.tolist()).split() if word in WORDS]
    assert [word for word in shown.split() if word in WORDS] == words
    assert "<script" not in page and "http" not in page


def test_the_page_shows_that_an_answers_end_is_predicted(tmp_path: Path) -> None:
    """Where the text of a conversation has a line break, which is only read."""
    (tmp_path / "red.jpg").write_bytes(RED)
    said = [("user", "what"), ("assistant", "a red cat"), ("user", "and"), ("assistant", "blue")]
    row = {"messages": [{"role": role, "content": text} for role, text in said], "image": "red.jpg"}
    (tmp_path / "talk.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    worker = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(16), merging_tokenizer()))
    found = survey(UserData(shards=str(tmp_path / "talk.jsonl"), batch_size=1), worker, samples=1)
    write_page(tmp_path / "a.html", found, worker, "talk")
    spans = re.findall(r'<span class="(learned|read)">((?:<span[^>]*>[^<]*</span>|[^<]|<br>)*)</span>',
                       (tmp_path / "a.html").read_text(encoding="utf-8"))  # fmt: skip
    learned = "".join(text for kind, text in spans if kind == "learned")
    read = "".join(text for kind, text in spans if kind == "read")
    assert learned.count("&lt;|endofchunk|&gt;") == 2 and "↵" not in learned
    assert "endofchunk" not in read and read.count("↵") >= 3


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command(
    documents: tuple[Path, list[list[int]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, good = documents
    assert run("data", file, "--json", "--page", tmp_path / "a.html", "--set", "max_images=2") == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    counts = [len(lengths) for lengths in good]
    assert shown["format"] == "own" and shown["documents"] == 38 and shown["settings"]["max_images"] == 2
    assert shown["images"]["median"] == np.median(counts) and shown["images"]["total"] == sum(counts)
    assert shown["images"]["histogram"] == {str(n): counts.count(n) for n in range(1, max(counts) + 1)}
    assert sum(shown["tokens"]["histogram"].values()) == 38 and shown["kept_images"]["max"] == 2
    assert (tmp_path / "a.html").is_file()
    assert run("data", file) == 0
    text = capsys.readouterr().out
    assert "38 documents of 40 records (95.0 %)" in text and re.search(r"missing image +1 #", text)
    for wrong, message in (
        (("--set", "max_image=2"), "invalid setting 'max_image=2'"),
        (("--page", "a.txt"), "ends in .html"),
        (("--format", "mmc4", "--set", "max_tokens=x"), "max_tokens=x"),
    ):
        assert run("data", file, *wrong) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    assert run("data", tmp_path / "bad.jsonl") == 1

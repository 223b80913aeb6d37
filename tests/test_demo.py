"""The demonstration with a tiny model: what it writes agrees with itself and with the model, and bears any text."""

import json
import os
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import flamboyance
from flamboyance import names, templates
from flamboyance.cli import main
from flamboyance.demo import run as demonstration
from flamboyance.demo.asking import MAX_NEW_TOKENS, ask
from flamboyance.demo.page import write_page
from flamboyance.demo.plot import write_plots
from flamboyance.demo.results import AnsweredQuery, AnsweredSet, AnsweredTask, Reply, Results, wilson
from flamboyance.demo.snippets import python
from flamboyance.demo.tasks import Example, Set, Task
from tests.tiny import save_tiny_flamingo

QUERIES, SHOTS = 4, (0, 2, 4, 8)
HOSTILE = '"><script>alert(1)</script><img src="http://x.example/" onerror=\'alert(2)\'>&amp;'


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(tiny: Path):
    return flamboyance.FlamingoForConditionalGeneration.from_pretrained(
        str(tiny)
    ), flamboyance.FlamingoProcessor.from_pretrained(tiny)


@pytest.fixture(scope="module")
def written(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote, which held a file before."""
    folder = tmp_path_factory.mktemp("out") / "demo"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    with redirect_stdout(StringIO()) as said:
        assert main(["demo", "--model", str(tiny), "--output", str(folder), "--queries", str(QUERIES)]) == 0
    (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """A page's text, tags, and what its tags refer to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags, self.attributes, self.references, self.text = [], set(), [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def queries_of(data: dict) -> list[tuple[dict, dict]]:
    return [(part, query) for task in data["tasks"] for part in task["sets"] for query in part["queries"]]


# What the command writes


def test_pictures_are_pictures_and_the_page_shows_each(written: Path) -> None:
    data, page = json.loads((written / "results.json").read_text(encoding="utf-8")), Page(written / "index.html")
    shown = [one["image"] for task in data["tasks"] for part in task["sets"] for one in part["demonstrations"]]
    shown += [query["example"]["image"] for _, query in queries_of(data)]
    assert len(set(shown)) == len(shown) and set(shown) <= set(page.references)
    assert {f"images/{file.name}" for file in (written / "images").iterdir()} == set(shown)
    for name in [*shown, "accuracy.png", "accuracy-dark.png"]:
        with Image.open(written / name) as image:
            image.load()
            assert len(image.convert("L").getcolors(1 << 20)) > 1
    assert (written / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_the_page_refers_to_nothing_elsewhere(written: Path) -> None:
    page = Page(written / "index.html")
    assert "script" not in page.tags and "link" not in page.tags
    for reference in page.references:
        assert reference.startswith("#") or (written / reference).exists(), reference
    assert "url(" not in (written / "index.html").read_text(encoding="utf-8")


def test_the_page_says_that_other_pictures_are_outside_of_its_world(written: Path, tmp_path: Path) -> None:
    told = " ".join(Page(written / "index.html").text.split())
    assert "Other pictures are outside of it" in told
    results = Results("flamingo-mini", 3, 1, (0,), 0, [], 1.0)
    own = " ".join(Page(write_page(results, tmp_path)).text.split())
    assert "Other pictures are outside of it" in own and "photograph" in own
    assert "auxiliary loss and a gate set by hand" in own  # how its binding came about


def test_the_page_holds_every_question_and_answer(written: Path) -> None:
    text = " ".join(Page(written / "index.html").text.split())
    for _, query in queries_of(json.loads((written / "results.json").read_text(encoding="utf-8"))):
        said = [reply["said"] for reply in query["replies"].values()]
        for words in [query["example"]["answer"], query["example"]["question"] or "", *said]:
            assert all(word in text for word in words.split())


def test_the_table_counts_the_replies(written: Path) -> None:
    data = json.loads((written / "results.json").read_text(encoding="utf-8"))
    text, said = Page(written / "index.html").text, (written / "said.txt").read_text(encoding="utf-8")
    assert re.findall(rf"(\d+)/{QUERIES}\b", said) == [str(row["right"]) for row in data["table"]]
    assert re.search(r"done in \d+ seconds", said) and str(written / "index.html") in said.replace("\n", "")
    assert [(row["task"], row["shots"]) for row in data["table"]] == [
        (name, shots) for name in ("captions", "questions", "digits", "words") for shots in SHOTS
    ]
    for row in data["table"]:
        (task,) = (task for task in data["tasks"] if task["name"] == row["task"])
        queries = [query for part in task["sets"] for query in part["queries"]]
        right = sum(q["replies"][str(row["shots"])]["said"] == q["example"]["answer"] for q in queries)
        assert (row["right"], row["total"]) == (right, QUERIES)
        assert row["accuracy"] == right / QUERIES
        assert f"{right} of {QUERIES}" in text


def test_demonstrations_of_words_are_balanced_at_every_number_of_shots(written: Path) -> None:
    data = json.loads((written / "results.json").read_text(encoding="utf-8"))
    (words,) = (task for task in data["tasks"] if task["name"] == "words")
    for part in words["sets"]:
        for shots in SHOTS:
            said = [one["answer"] for one in part["demonstrations"][:shots]]
            assert all(said.count(word) == shots // 2 for word in part["candidates"])


def test_pictures_follow_from_the_seed(tmp_path: Path) -> None:
    from flamboyance.demo.examples import write_examples

    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    tasks = [write_examples(folder, 9, 2, seed) for folder, seed in ((one, 3), (same, 3), (other, 4))]
    assert tasks[0] == tasks[1] != tasks[2]
    files = sorted(file.name for file in (one / "images").iterdir())
    assert all((one / "images" / f).read_bytes() == (same / "images" / f).read_bytes() for f in files)
    assert all((one / "images" / f).read_bytes() != (other / "images" / f).read_bytes() for f in files)
    assert [sum(len(part.queries) for part in task.sets) for task in tasks[0]] == [9] * 4


# How it asks


@pytest.fixture
def colours(tmp_path: Path) -> list[Task]:
    """Two tasks over plain pictures: one generates, one chooses."""
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
    shown = [Example("red.png", "red", "what is this ?"), Example("green.png", "green", "what is this ?")]
    asked = [Example("blue.png", "blue", "what is this ?"), Example("red.png", "red", "is this a cat ?")]
    generated = Task("questions", "Questions", "Of colours.", templates.vqa, [Set(shown, asked)])
    shown = [Example(one.image, one.answer) for one in shown]
    chosen = Set(shown, [Example("green.png", "green")], ["red", "green"])
    return [generated, Task("words", "Words", "Two.", templates.classification, [chosen], chance=0.5)]


def test_replies_are_those_of_the_full_prompt(loaded, colours: list[Task], tmp_path: Path) -> None:
    model, processor = loaded
    told: list[int] = []
    answered = ask(model, processor, colours[0], tmp_path, (0, 2), told.append)
    assert told == [2, 2]
    for shots in (0, 2):
        prefix = "".join(
            f"<image>Question:what is this ? Short answer:{colour}<|endofchunk|>" for colour in ("red", "green")[:shots]
        )
        images = [tmp_path / "red.png", tmp_path / "green.png"][:shots]
        for query in answered.sets[0].queries:
            text = f"{prefix}<image>Question:{query.example.question} Short answer:"
            inputs = processor([text], [[*images, tmp_path / query.example.image]])
            out = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            said = processor.decode(out[0, inputs["input_ids"].shape[1] :])
            assert query.replies[shots].said == templates.vqa.parse(said)
            assert query.replies[shots].right == (query.replies[shots].said == query.example.answer)


def test_the_choice_is_the_likeliest_candidate(loaded, colours: list[Task], tmp_path: Path) -> None:
    model, processor = loaded
    reply = ask(model, processor, colours[1], tmp_path, (2,)).sets[0].queries[0].replies[2]
    text = "<image>Output:red<|endofchunk|><image>Output:green<|endofchunk|><image>Output:"
    inputs = processor([text], [[tmp_path / name for name in ("red.png", "green.png", "green.png")]])
    shares = torch.softmax(model.score(**inputs, candidates=["red", "green"])[0], 0)
    assert reply.said == ("red", "green")[int(shares.argmax())]
    assert reply.probability == pytest.approx(shares.max().item(), abs=1e-3)


def test_the_program_on_the_page_gives_the_reply(
    loaded, colours: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flamboyance, "load_mini", lambda: loaded)
    for task in colours:
        answered = ask(*loaded, task, tmp_path, (2,))
        exec(python(answered, 2, "flamingo-mini"), {})
        assert answered.sets[0].queries[0].replies[2].said in capsys.readouterr().out


@pytest.mark.parametrize("right, total", [(0, 64), (64, 64), (1, 3), (50, 100), (7, 8)])
def test_interval_is_wilsons(right: int, total: int) -> None:
    known = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((known.low, known.high), abs=1e-4)


# Bad input


def test_any_text_stays_text(tmp_path: Path) -> None:
    one = Example(HOSTILE, HOSTILE, HOSTILE)
    replies = {0: Reply(HOSTILE, False, 0.5), 2: Reply(f"a b {HOSTILE}", True)}
    sets = [
        AnsweredSet([one, one], [AnsweredQuery(one, replies)], words) for words in (None, [HOSTILE, "b"], ["a", "b"])
    ]
    task = AnsweredTask(Task("words", HOSTILE, HOSTILE, templates.vqa, [], chance=0.5), sets)
    results = Results(HOSTILE, 10, 1, (0, 2), 0, [task], 1.0)
    page = Page(write_page(results, tmp_path))
    assert "script" not in page.tags and "onerror" not in page.attributes
    assert all(reference == HOSTILE for reference in page.references if "x.example" in reference)
    assert page.text.count("<script>alert(1)</script>") > 10
    results.save(tmp_path)
    (saved,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["tasks"]
    assert saved["sets"][0]["queries"][0]["replies"]["0"]["said"] == HOSTILE
    write_plots(results, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["demo", "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"cannot write to {output}" in said and "--output" in said and said.count("\n") == 1


def test_a_working_directory_that_cannot_be_written(
    loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a directory that not even root can write to")
    monkeypatch.chdir("/proc")
    assert main(["demo"]) == 2
    assert "flamboyance-demo" in capsys.readouterr().err
    demonstration.run(*loaded, tmp_path / "out", queries=1)
    assert (tmp_path / "out" / "index.html").is_file()


def test_what_is_missing_or_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"--queries.*0"):
        demonstration.check(tmp_path, 0)
    monkeypatch.setattr(demonstration, "find_spec", lambda name: None if name == "sklearn" else True)
    assert main(["demo", "--output", str(tmp_path / "new")]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_load_mini(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "EMBEDDED_DIRECTORY", tmp_path)
    with pytest.raises(OSError, match="embedded model"):
        flamboyance.load_mini()
    monkeypatch.setattr(names, "EMBEDDED_DIRECTORY", tiny)
    model, processor = flamboyance.load_mini()
    assert model.dtype == torch.float32 and not model.training
    inputs = processor(["<image>Output:"], [[Image.new("RGB", (16, 16))]])
    assert model.score(**inputs, candidates=["a cat", "a dog"]).shape == (1, 2)

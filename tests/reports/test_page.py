"""The page of predictions: what it holds, that hostile text stays text, its size, and that a browser shows it."""

import base64
import gzip
import html
import json
import math
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from flamboyance.evaluation import data_folders
from flamboyance.reports import page as browse
from flamboyance.reports.evaluation_run import read_run, read_runs
from scripts.web_pictures import CHROMIUM

from .written_run import WrittenRun, picture, row

HOSTILE = "</script><script>document.title='OWNED'</script><img src=x onerror=\"document.title='OWNED'\"><!--"


class Page:
    """A page's data, unpacked as its script does."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.parts = dict(re.findall(r'<script type="[^"]+" id="(\w+)">(.*?)</script>', self.text))
        self.meta = json.loads(self.parts["meta"])

    def part(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.parts[name])))

    def rows(self, cell: int = 0) -> list[dict[str, Any]]:
        """A cell's rows with their texts."""
        table = self.part(f"t{self.meta['cells'][cell]['task']}")
        texts = table["texts"]
        found = []
        for query, prompt, shown, generated, answer, value, chances, dropped, tags in self.part(f"c{cell}"):
            id, images, asked, references = table["asked"][query]
            found.append(
                {
                    "id": texts[id],
                    "image": table["images"][images[0]] if images else None,
                    "images": [table["images"][image] for image in images],
                    "asked": [texts[i] for i in asked],
                    "references": [texts[i] for i in references],
                    "prompt": "".join(texts[i] for i in prompt),
                    "shown": [
                        (table["images"][places[0]] if places else None, [texts[i] for i in words], texts[said])
                        for _, places, words, said in (table["shown"][i] for i in shown)
                    ],
                    "generated": None if generated is None else texts[generated],
                    "answer": None if answer is None else texts[answer],
                    "value": value,
                    "chances": chances and {texts[i]: chance for i, chance in chances},
                    "dropped": dropped,
                    "tags": [texts[i] for i in tags],
                }
            )
        return found


def written(run: WrittenRun, folder: Path | None = None, **options: Any) -> Page:
    return Page(browse.write_page([read_run(run.folder)], folder or run.folder, **options))


def test_a_prediction_comes_back_whole(tmp_path: Path) -> None:
    prompt = "Question:a? Short answer:b<|endofchunk|>\n<image>Question:c? Short answer:"
    shown = [
        {"id": "7", "image": None, "asked": ["a?"], "answer": "b"},
        {"id": "8", "image": "/x/8.jpg", "asked": ["ä\u2028?"], "answer": ""},
    ]
    one = row("q", 33.333, prompt=prompt, demonstrations=shown, asked=["c?"], generated="d\nQ", answer="d", dropped=3)
    run = WrittenRun(tmp_path).task("vqav2", "VQAv2", "VQA accuracy")
    run.cell("vqav2", 8, "rices", 2, [one | {"references": ["d"] * 9 + ["e"]}], 33.3)
    page = written(run, links=[("report.md", "tables")])
    (found,) = page.rows()
    assert found["prompt"] == prompt
    assert (found["id"], found["asked"], found["references"]) == ("q", ["c?"], ["d"] * 9 + ["e"])
    assert (found["generated"], found["answer"], found["value"], found["dropped"]) == ("d\nQ", "d", 33.33, 3)
    assert found["shown"][0] == (None, ["a?"], "b")
    assert found["shown"][1][0][1] == "8.jpg" and found["shown"][1][1:] == (["ä\u2028?"], "")
    cell = page.meta["cells"][0]
    assert (cell["mode"], cell["shots"], cell["seed"], cell["value"]) == ("rices", 8, 2, 33.3)
    assert cell["interval"] == [40.0, 60.0] and cell["finished"]
    assert '<a href="report.md">tables</a>' in page.text


def test_label_probabilities(tmp_path: Path) -> None:
    """The softmax over the labels; of many the likeliest, and the right one."""
    two = row("a", None, scores={"no": math.log(0.1), "yes": math.log(0.3)}, answer="yes", references=["no"])
    many = {f"bird {i}": -float(i) for i in range(30)}
    run = WrittenRun(tmp_path).task("birds", "Birds", "accuracy")
    best = row("d", scores={f"bird {i}": -i / 1000 for i in range(5)}, scores_total=math.log(995.0))  # of 1,000 labels
    known = row("b", scores=many, references=["bird 25"])
    run.cell("birds", rows=[two, known, row("c", scores={"x": math.nan}), best])
    first, second, third, fourth = written(run).rows()
    assert first["chances"] == {"no": 0.25, "yes": 0.75}
    assert list(second["chances"]) == [*(f"bird {i}" for i in range(10)), "bird 25"]
    assert second["chances"]["bird 0"] == pytest.approx(1 - math.exp(-1), abs=1e-4)
    assert third["chances"] is None
    assert fourth["chances"] == {f"bird {i}": pytest.approx(0.001, abs=1e-4) for i in range(5)}


@pytest.mark.parametrize(
    "rows, kind",
    [
        ([row("a", 0.0), row("b", 100.0)], "share"),
        ([row("a", 0.0), row("b", 180.0)], "score"),
        ([row("a", None, scores={"x": -1.0}, references=["x"])], "label"),
        ([row("a", None, references=[])], "none"),
        ([row("a", math.nan)], "none"),
        ([], "none"),
    ],
)
def test_how_values_are_read(tmp_path: Path, rows: list, kind: str) -> None:
    run = WrittenRun(tmp_path).task("t", "T", "metric")
    run.cell("t", rows=rows)
    assert written(run).meta["cells"][0]["kind"] == kind


def test_low_cider_is_still_no_share(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("t", "T", "CIDEr")
    run.cell("t", rows=[row("a", 12.0), row("b", 20.0)])
    cell = written(run).meta["cells"][0]
    assert (cell["kind"], cell["middle"]) == ("score", 16.0)


def hostile_run(folder: Path) -> WrittenRun:
    run = WrittenRun(folder, "a\\" + HOSTILE.replace("/", "")).task("evil", HOSTILE, HOSTILE)
    shown = [{"id": HOSTILE, "image": "javascript:alert(1)", "asked": [HOSTILE], "answer": HOSTILE}]
    one = row(HOSTILE, 0.0, asked=[HOSTILE], prompt=HOSTILE, demonstrations=shown, generated=HOSTILE, answer=HOSTILE)
    other = row("lone \ud800 surrogate", image='"><script>.jpg', answer="")
    run.cell("evil", rows=[one | {"references": [HOSTILE], "scores": {HOSTILE: -1.0, "no": -2.0}}, other])
    return run


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "a 'run' & \"more\" <script>"
    page = written(hostile_run(folder), links=[("a&b.md", "<b>")])
    # What is left without our own elements has no other markup than what the page writes.
    bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page.text, flags=re.DOTALL)
    assert "<script" not in bare and "<img" not in bare and "<b>" not in bare
    assert html.escape("<img src=x") in bare
    found = page.rows()[0]
    assert found["answer"] == HOSTILE and found["prompt"] == HOSTILE and HOSTILE in found["chances"]
    assert page.meta["tasks"][0]["title"] == HOSTILE
    assert found["shown"][0][0][0].startswith("../") and "javascript:" not in found["shown"][0][0][0]
    assert "default-src 'none'" in page.text and "http:" not in bare and "https:" not in bare


def test_links_to_images(tmp_path: Path) -> None:
    image = picture(tmp_path / "my \"pictures\" & 'things'" / "100% #1?é.png")
    run = WrittenRun(tmp_path / "run").task("t", "T", "m")
    picture(tmp_path / "run" / "inside.png")
    run.cell("t", rows=[row("a", image=str(image)), row("b", image="inside.png"), row("c", image="/gone/x.jpg")])
    found = written(run, tmp_path / "pages" / "deep", thumbnails=0).rows()
    links = [one["image"][0] for one in found]
    assert (tmp_path / "pages" / "deep" / unquote(links[0])).resolve() == image.resolve()
    assert not re.search(r"[\"'<># ?]", links[0])
    assert (tmp_path / "pages" / "deep" / unquote(links[1])).resolve() == (tmp_path / "run" / "inside.png").resolve()
    assert links[2].endswith("/gone/x.jpg")
    assert all(one["image"][2] == 0 for one in found)


def small(page: Page, cell: int = 0) -> list[bool]:
    """Of each query of a cell, whether its image is in the page itself."""
    return [bool(one["image"][2]) for one in page.rows(cell)]


def test_pictures_from_elsewhere_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results directory from somebody else: its tables name files of this disk, and its run.json folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    secret = picture(tmp_path / "home" / "secret.png")
    run = WrittenRun(tmp_path / "home" / "runs" / "theirs").task("t", "T", "m")
    own = picture(run.folder / "own.png")
    (run.folder / "link.png").symlink_to(secret)
    (run.folder / "folder").symlink_to(secret.parent)
    os.mkfifo(run.folder / "pipe.png")
    named = [
        own, "own.png", secret, "../../secret.png", "link.png", "folder/secret.png", secret.as_uri(), "pipe.png",
        "/dev/zero", "a\0.png", "x" * 5000, ".", "", f"{run.folder}/../../secret.png",
    ]  # fmt: skip
    run.cell("t", rows=[row(str(i), image=str(path)) for i, path in enumerate(named)])
    told: list[str] = []
    for data in (None, {"folders": ["/"]}, {"folders": ["/"], "seal": "0" * 64}, {"folders": "/", "seal": 3}, ["/"]):
        run.about["data"] = data
        run.save()
        assert small(written(run, say=told.append)) == [True, True] + [False] * 12
    assert len(told) == 5 and all("--images" in line and str(secret.parent) in line for line in told)
    # The user may name folders.
    assert small(written(run, images=[secret.parent]))[:7] == [True] * 6 + [False]


def test_a_run_from_elsewhere_beside_ones_own_copies_no_pictures_of_ones_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked, other = picture(tmp_path / "data" / "1.png"), picture(tmp_path / "data" / "2.png")
    own = WrittenRun(tmp_path / "own").task("t", "T", "m")
    own.cell("t", rows=[row("1", image=str(asked))])
    own.about["data"] = data_folders.sealed([str(tmp_path / "data")])
    own.save()
    theirs = WrittenRun(tmp_path / "theirs").task("t", "T", "m")
    theirs.cell("t", rows=[row("1", image=str(asked)), row("2", image=str(other))])
    page = Page(browse.write_page(read_runs([own.folder, theirs.folder]), tmp_path))
    assert (small(page, 0), small(page, 1)) == ([True], [True, False])


def test_pictures_of_the_users_own_data_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inside, outside = picture(tmp_path / "data" / "deep" / "1.png"), picture(tmp_path / "database" / "2.png")
    run = WrittenRun(tmp_path / "run").task("t", "T", "m")
    run.cell("t", rows=[row("1", image=str(inside)), row("2", image=str(outside))])
    run.about["data"] = data_folders.sealed([str(tmp_path / "data")])
    run.save()
    assert small(written(run)) == [True, False]
    run.about["data"]["folders"].append(str(tmp_path / "database"))  # added by somebody
    run.save()
    assert small(written(run)) == [False, False]
    run.about["data"] = data_folders.sealed([str(tmp_path / "data")])
    run.save()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another user's"))
    assert small(written(run)) == [False, False]
    assert (tmp_path / "cache/flamboyance/seal").stat().st_mode & 0o777 == 0o600


def test_thumbnails_are_as_many_as_asked_for(tmp_path: Path) -> None:
    paths = [str(picture(tmp_path / "images" / f"{i}.png", size=(900, 600))) for i in range(4)]
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    paths.insert(1, str(tmp_path / "images" / "broken.png"))
    run = WrittenRun(tmp_path / "run")
    for task in ("one", "two"):
        run.task(task, task, "m").cell(task, rows=[row(str(i), image=path) for i, path in enumerate(paths)])
    page = written(
        run, thumbnails=6, images=[tmp_path / "images"]
    )  # three of each task, the second of which cannot be read
    for cell in (0, 1):
        assert small(page, cell) == [True, False, True, False, False]
        first = page.rows(cell)[0]["image"][2]
        assert base64.b64decode(first).startswith(b"\xff\xd8") and len(first) < 4000


def test_unfinished_and_empty_cells(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("t", "T", "m", 50)
    run.cell("t", 0, rows=[])
    run.killed("t", 4, "random", 0, [row("a"), row("b")])
    empty, killed = written(run).meta["cells"]
    assert (empty["queries"], empty["finished"]) == (0, True)
    assert (killed["queries"], killed["finished"], killed["value"]) == (2, False, None)
    nothing = Page(browse.write_page([read_run(WrittenRun(tmp_path / "other").folder)], tmp_path / "other"))
    assert nothing.meta["cells"] == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("t", "T", "m")
    file = run.cell("t", rows=[row("a"), row("b")]) / "predictions.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('{"id": "b"', '{"id" "b"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"t/4-random-0/predictions.jsonl, line 2"):
        written(run)
    assert not (tmp_path / "index.html").exists()


def test_two_runs_share_texts_and_queries(tmp_path: Path) -> None:
    for name in ("a", "b"):
        WrittenRun(tmp_path / name, name).task("t", "T", "m").cell("t", rows=[row("q", 0.0, answer=name)])
    page = Page(browse.write_page(read_runs([tmp_path / "a", tmp_path / "b"]), tmp_path))
    assert [run["name"] for run in page.meta["runs"]] == ["a", "b"]
    assert [cell["run"] for cell in page.meta["cells"]] == [0, 1]
    assert [page.rows(cell)[0]["answer"] for cell in (0, 1)] == ["a", "b"]
    assert len(page.part("t0")["asked"]) == 1


def large_run(folder: Path, queries: int, shots: int = 8) -> WrittenRun:
    def demonstration(i: int) -> dict[str, Any]:
        return {
            "id": f"s{i}",
            "image": f"/data/train2014/{i:012d}.jpg",
            "asked": [f"What is thing {i}?"],
            "answer": "a",
        }

    def prediction(i: int) -> dict[str, Any]:
        shown = [demonstration((31 * i + 7 * k) % 2048) for k in range(shots)]
        texts = [f"<image>Question:{one['asked'][0]} Short answer:a<|endofchunk|>\n" for one in shown]
        asked = f"What stands at place {i}?"
        return row(
            str(i), 100.0 * (i % 3 == 0), image=f"/data/val2014/{i:012d}.jpg", asked=[asked], demonstrations=shown,
            prompt="".join(texts) + f"<image>Question:{asked} Short answer:", references=["a"] * 9 + [f"b{i % 99}"],
        )  # fmt: skip

    run = WrittenRun(folder).task("vqav2", "VQAv2", "VQA accuracy", queries)
    run.cell("vqav2", shots, rows=[prediction(i) for i in range(queries)])
    return run


@pytest.mark.parametrize("queries", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_queries(tmp_path: Path, queries: int) -> None:
    run = large_run(tmp_path, queries)
    began = time.process_time()
    page = written(run)
    assert time.process_time() - began < 20
    size = (tmp_path / "vqav2" / "8-random-0" / "predictions.jsonl").stat().st_size
    assert size > 1500 * queries and (tmp_path / "index.html").stat().st_size < 150 * queries
    assert len(page.rows()) == page.meta["cells"][0]["there"] == queries
    run.cell("vqav2", 0, rows=[row("a"), row("b")])
    few = written(run, items=102)
    assert [cell["there"] for cell in few.meta["cells"]] == [2, 100]
    assert few.meta["cells"][1]["queries"] == queries and len(few.part("c1")) == 100


# -- in a browser

PROBE = """<script>
(async () => {
  const sleep = (time) => new Promise((go) => setTimeout(go, time));
  const until = async (found) => { for (let i = 0; i < 2000 && !found(); i++) await sleep(20); };
  await until(() => document.querySelector(".card"));
  const told = {};
  %s
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
})();
</script></body>"""


def in_a_browser(page: Path, script: str, place: str = "") -> dict[str, Any]:
    """What a script in the page finds out."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE % script), encoding="utf-8")
    command = [CHROMIUM or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", probed.resolve().as_uri() + place]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    match = re.search(r'<pre id="told">(.*?)</pre>', dom, flags=re.DOTALL)
    assert match, dom[-2000:]
    return json.loads(html.unescape(match[1]))


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@needs_browser
def test_keys_filters_and_search(tmp_path: Path) -> None:
    page = browse.write_page([read_run(large_run(tmp_path, 300, 2).folder)], tmp_path)
    script = """
      const here = () => document.querySelector(".here")?.dataset.id;
      told.title = document.title; told.cards = document.querySelectorAll(".card").length;
      const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      key("j"); key("j"); key("j"); key("k"); told.here = here();
      key("p"); await until(() => document.querySelector(".here pre").childNodes.length);
      told.prompt = document.querySelector(".here pre").textContent;
      key("/"); told.focus = document.activeElement.name;
      const change = async (name, value) => {
        const field = document.querySelector(`[name=${name}]`);
        field.value = value; field.dispatchEvent(new Event(name === "find" ? "input" : "change", { bubbles: true }));
        await sleep(400);
        told[name] = document.querySelector(".count strong").textContent;
      };
      await change("show", "right"); await change("find", "place 12"); await change("sort", "high");
      told.first = document.querySelector(".card").dataset.id;
      told.gone = document.querySelectorAll(".card:first-child .gone").length;
    """
    told = in_a_browser(page, script)
    assert told["title"] == "flamingo-mini: predictions" and told["cards"] >= 20
    assert told["here"] == "1"
    assert told["prompt"].count("<image>") == 3 and told["prompt"].endswith("place 1? Short answer:")
    assert told["focus"] == "find"
    assert told["show"] == "100 queries"
    assert told["find"] == told["sort"] == "5 queries"  # 12, 120, 123, 126, 129: every third is right
    assert told["first"] == "12" and told["gone"] == 3  # the query's image and two demonstrations' are not there


@needs_browser
def test_only_answers_of_a_type(tmp_path: Path) -> None:
    rows = [
        row(f"{i}", 100.0 * (i % 2), kinds={"answer type": ("yes/no", "number", "other")[i % 3]}, image=None)
        | {"images": ["/x/1.png", "/x/2.png"]}
        for i in range(30)
    ]
    run = WrittenRun(tmp_path).task("vqav2", "VQAv2", "VQA accuracy")
    run.cell("vqav2", rows=rows)
    page = browse.write_page([read_run(run.folder)], tmp_path)
    script = """
      const field = () => document.querySelector("[name=tag]");
      told.options = [...field().options].map((one) => one.textContent);
      const gone = () => document.querySelectorAll(".card:first-child .query .gone").length;
      await until(() => gone() === 2);
      told.images = gone();
      field().value = "answer type: number"; field().dispatchEvent(new Event("change", { bubbles: true }));
      await sleep(400);
      told.count = document.querySelector(".count strong").textContent;
      told.tags = document.querySelector(".card .tags").textContent;
    """
    told = in_a_browser(page, script)
    kinds = [f"answer type: {kind} (10)" for kind in ("yes/no", "number", "other")]
    assert told["options"] == ["any answer", *kinds, "counting (10)"]
    assert told["count"] == "10 queries" and told["images"] == 2
    assert told["tags"] == "answer type: number · counting"


@needs_browser
def test_hostile_text_in_a_browser(tmp_path: Path) -> None:
    page = browse.write_page([read_run(hostile_run(tmp_path / "run").folder)], tmp_path)
    script = """
      document.querySelectorAll("details").forEach((one) => { one.open = true; });
      await sleep(500);
      told.title = document.title; told.answer = document.querySelector(".answer").textContent;
      told.images = [...document.querySelectorAll("article img")].map((one) => one.src);
    """
    told = in_a_browser(page, script)
    assert told["title"].endswith(": predictions") and told["answer"] == HOSTILE
    assert not any(source.startswith("javascript") for source in told["images"])


@needs_browser
def test_an_address_leads_to_a_query(tmp_path: Path) -> None:
    run = large_run(tmp_path, 60, 2)
    run.cell("vqav2", 4, "rices", 1, [row("x"), row("y")])
    page = browse.write_page([read_run(tmp_path)], tmp_path)
    script = """
      told.here = document.querySelector(".here")?.dataset.id;
      told.count = document.querySelector(".count").textContent;
    """
    assert in_a_browser(page, script, "#task=vqav2&mode=rices&shots=4&seed=1&at=y")["here"] == "y"
    told = in_a_browser(page, script, "#task=vqav2&mode=random&shots=2&seed=0&at=45")
    assert told["here"] == "45" and told["count"].startswith("60 queries of 60")

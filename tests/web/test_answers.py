"""What the page's controls do: streamed answers, chances, attention maps, tasks; and the HTML of its figures."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.task_files import TaskFile, read_task, write_task
from flamboyance.templates import Template
from flamboyance.web import drawing
from flamboyance.web.answers import CAPTION, OWN, QUESTION, Answers, Shot, Side, kind_of, labels_of, template_of
from tests.tiny import save_tiny_flamingo
from tests.videos.make import grey, write_video

SHOTS = [Shot(path.read_bytes(), (text,), number) for number, (path, text) in enumerate(fl.examples.demonstrations)]
QUERY = (fl.examples.queries[0].read_bytes(),)
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers({"mini": fl.load_mini()})


def test_an_answer_grows_to_the_task_s(answers: Answers) -> None:
    task = answers.task(Side("mini", SHOTS, ""), fl.templates.caption)
    [expected] = fl.FewShotTask(*answers.models["mini"], fl.examples.demonstrations)([QUERY[0]])
    seen = list(answers.stream(task, QUERY, 20, 1))
    assert seen[-1] == expected == "a large green ring"
    assert len(set(seen)) > 2 and all(expected.startswith(text) for text in seen)
    assert list(answers.stream(task, QUERY, 20, 3))[-1] == task([QUERY[0]], num_beams=3)[0]


def test_an_answer_that_is_not_wanted_any_more_ends(answers: Answers) -> None:
    task = answers.task(Side("mini", SHOTS, ""), fl.templates.caption)
    growing = answers.stream(task, QUERY, 20, 1)
    next(growing)
    growing.close()  # returns when the computation has ended


def test_an_error_while_computing_reaches_the_page(answers: Answers) -> None:
    task = answers.task(Side("mini", SHOTS, ""), fl.templates.caption)
    with pytest.raises(ValueError, match="image"):
        list(answers.stream(task, (b"no image",), 20, 1))


def test_chances_and_maps(answers: Answers) -> None:
    task = answers.task(Side("mini", SHOTS, ""), fl.templates.caption)
    chances = answers.chances(task, QUERY, ["a large green cross", "a large green ring"])
    assert list(chances) == ["a large green ring", "a large green cross"] and abs(sum(chances.values()) - 1) < 1e-5
    maps = answers.look(task, QUERY, "a large green ring")
    assert maps is not None and maps.words == ["a", "large", "green", "ring"]
    assert answers.look(task, QUERY, " ") is None


def test_demonstrations_stay_computed(answers: Answers) -> None:
    task = answers.task(Side("mini", SHOTS, "one"), fl.templates.caption)
    assert answers.task(Side("mini", list(SHOTS), "another"), fl.templates.caption) is task
    assert answers.task(Side("mini", SHOTS[:2], ""), fl.templates.caption) is not task
    for number in range(4):
        answers.task(Side("mini", SHOTS[: number + 1], ""), fl.templates.vqa if number == 9 else fl.templates.caption)
    assert len(answers._tasks) == 4


def test_a_demonstration_without_a_text_is_named(answers: Answers) -> None:
    empty = [SHOTS[0], Shot(SHOTS[1].image, (" ",), 7)]
    with pytest.raises(ValueError, match="Demonstration 2 has no text"):
        answers.task(Side("mini", empty, ""), fl.templates.caption)
    with pytest.raises(ValueError, match="Demonstration 1 has no question"):
        answers.task(Side("mini", SHOTS, ""), fl.templates.vqa)


def test_the_answer_stays_when_the_kind_of_task_changes() -> None:
    shot = Shot(b"", ("a ring",))
    assert shot.fields(fl.templates.vqa) == ("", "a ring")
    assert Shot(b"", ("what?", "a ring")).fields(fl.templates.caption) == ("a ring",)
    assert Shot(b"").fields(fl.templates.vqa) == ("", "")


def test_kinds_and_labels() -> None:
    for kind in (CAPTION, QUESTION):
        assert kind_of(template_of(kind, ""))[0] == kind
    own = template_of(OWN, " <image>A picture of {text}. ")
    assert kind_of(own) == (OWN, "<image>A picture of {text}.")
    assert labels_of("ring, cross,ring,, ") == ["ring", "cross"]
    assert labels_of("a, b\nc\n") == ["a, b", "c"]
    with pytest.raises(ValueError, match="<image>"):
        template_of(OWN, "{text}")


def test_what_others_wrote_is_text_on_the_page(answers: Answers) -> None:
    side = Side("mini", SHOTS, HOSTILE, HOSTILE, {HOSTILE: 0.75, "b": 0.25}, state=HOSTILE)
    task = answers.task(Side("mini", SHOTS, ""), fl.templates.caption)
    side.maps = answers.look(task, QUERY, "ring")
    assert side.maps is not None
    side.maps.words[0] = HOSTILE
    written = drawing.sides([side], None) + drawing.message(HOSTILE) + drawing.header([HOSTILE])
    written += drawing.thumbnail(Image.new("RGB", (9, 9)), HOSTILE)
    assert HOSTILE not in written and "onerror=&quot;" in written
    assert len(re.findall("<img ", written)) == 2  # a heat map and a thumbnail
    assert written.count("width:75.0%") == 1
    assert written.count("layer ") == len(side.maps.layers)


page: Any = pytest.importorskip("flamboyance.web.page", reason="gradio is not installed")


def test_the_page_is_made_without_telemetry(answers: Answers) -> None:
    blocks = page.build(answers)
    assert blocks.analytics_enabled is False
    assert "googleapis" not in page.theme()._get_theme_css() and page.theme()._stylesheets == []
    style = (page.HERE / "style.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style


def test_demonstrations_move_with_their_texts(answers: Answers) -> None:
    texts = ["one", "two", "three", "four"]
    moved = page._on_shots(page._moved(1, -1))(SHOTS, *texts)
    assert [(shot.number, shot.texts) for shot in moved] == [
        (SHOTS[1].number, ("two",)), (SHOTS[0].number, ("one",)), (SHOTS[2].number, ("three",)),
        (SHOTS[3].number, ("four",)),
    ]  # fmt: skip
    assert [shot.number for shot in page._on_shots(page._moved(3, 1))(SHOTS, *texts)] == [0, 1, 2, 3]
    assert [shot.number for shot in page._on_shots(page._removed(2))(SHOTS, *texts)] == [0, 1, 3]


def test_a_saved_task_is_opened_again(answers: Answers, tmp_path) -> None:
    texts = ["what?", "one", "why?", "two"]
    text, problem = page._task_text(QUESTION, "", "my/task", SHOTS[:2], *texts)
    assert problem == "" and json.loads(text)["name"] == "my-task"
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    assert read_task(tmp_path / "t.json").template == fl.templates.vqa
    shots, kind, _, problem = page._opened(False, str(tmp_path / "t.json"))
    assert kind == QUESTION and problem == ""
    assert [(shot.image, shot.texts) for shot in shots] == [
        (SHOTS[0].image, ("what?", "one")), (SHOTS[1].image, ("why?", "two"))
    ]  # fmt: skip


def test_a_task_whose_answers_end_otherwise_is_not_opened(answers: Answers, tmp_path) -> None:
    for template in (
        Template("<image>Q: {q} A:{a}", stops=("Q:",), drop='"'),
        replace(fl.templates.vqa, stops=("Question",)),
    ):
        task = TaskFile("t", template, ((SHOTS[0].image, "what?", "one"),))
        write_task(tmp_path / "t.json", task)
        *_, problem = page._opened(False, str(tmp_path / "t.json"))
        assert "t.json has the template" in problem and "--demonstrations" in problem


def test_mistakes_are_said_on_the_page(answers: Answers, tmp_path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    *kept, problem = page._with_media(False, [str(tmp_path / "no.png")], SHOTS)
    assert len(kept) == 2 and 'role="alert"' in problem and "no.png cannot be used" in problem
    assert "not JSON" in page._opened(False, str(tmp_path / "no.png"))[-1]
    clip = write_video(tmp_path / "a.mp4", [grey(n) for n in range(3)])
    write_task(tmp_path / "clips.json", TaskFile("clips", fl.templates.caption, ((clip, "a"),)))
    assert "clips.json has a video" in page._opened(False, str(tmp_path / "clips.json"))[-1]
    assert "nothing to save" in page._task_text(CAPTION, "", "t", [])[-1]
    assert "a.mp4 cannot be used: it is a video" in page._with_media(False, [str(clip)], SHOTS)[-1]
    run = page._runner(answers)
    for change, words in (
        ({"image": None}, "no image yet"),
        ({"image": None, "video": str(clip)}, "the model is one of still images"),
        ({"video": str(clip)}, "an image and a video"),
        ({"labels": "ring"}, "two or more"),
        ({"kind": QUESTION, "question": " "}, "no question"),
        ({"kind": OWN, "own": "x"}, "&lt;image&gt;"),
        ({"kind": OWN, "own": "<image>{a}{b}{c}"}, "at most one field"),
    ):
        given = {
            "kind": CAPTION,
            "own": "",
            "image": str(fl.examples.queries[0]),
            "video": None,
            "question": "",
            "labels": "",
        } | change
        *_, last = run(*given.values(), page.NOTHING, 20, 1, -1, [])
        assert words in last[3] and 'role="alert"' in last[3], last[3]


def test_two_answers_beside_each_other(answers: Answers) -> None:
    run = page._runner(answers)
    texts = [text for _, text in fl.examples.demonstrations]
    given = [
        CAPTION,
        "",
        str(fl.examples.queries[0]),
        None,
        "",
        "a large green ring\nno",
        page.WITHOUT,
        20,
        1,
        -1,
        SHOTS,
    ]
    *_, (written, sides, _, problem, _) = run(*given, *texts)
    assert problem == "" and written.count('<section class="card">') == 2
    assert [side.title for side in sides] == ["4 demonstrations", "No demonstrations"]
    assert sides[0].answer == "a large green ring" and sides[0].chances["a large green ring"] > 0.9
    [alone] = fl.FewShotTask(*answers.models["mini"])([fl.examples.queries[0]])
    assert sides[1].answer == alone and all(side.maps is not None for side in sides)


@pytest.fixture(scope="module")
def with_videos(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """A model with time embeddings, to compare with one of still images."""
    opened = {}
    for name, frames in (("videos", 4), ("stills", None)):
        directory = save_tiny_flamingo(tmp_path_factory.mktemp(name), max_frames=frames)
        model = fl.FlamingoForConditionalGeneration.from_pretrained(directory).eval()
        opened[name] = model, fl.FlamingoProcessor.from_pretrained(directory)
    return Answers(opened)


def test_a_video_may_be_where_an_image_may(with_videos: Answers, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mp4", [grey(number) for number in range(30)])
    Image.new("RGB", (20, 20), "red").save(tmp_path / "b.png")
    shots, _, problem = page._with_media(True, [str(clip), str(tmp_path / "b.png")], [])
    assert problem == "" and len(shots) == 2 and shots[0].image == clip.read_bytes()
    assert page._thumbnail(shots[0].image, "a").startswith("<img")
    (tmp_path / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(99))
    assert "c.mp4 cannot be used" in page._with_media(True, [str(tmp_path / "c.mp4")], [])[-1]
    run = page._runner(with_videos)
    given = [CAPTION, "", None, str(clip), "", "cat, dog", page.NOTHING, 4, 1, -1, shots]
    *_, (_, sides, _, problem, _) = run(*given, "a cat", "a dog")
    assert problem == "", problem
    task = fl.FewShotTask(*with_videos.models["videos"], [(clip, "a cat"), (tmp_path / "b.png", "a dog")])
    assert sides[0].answer == task([clip], max_new_tokens=4)[0] and set(sides[0].chances) == {"cat", "dog"}
    # A random model may write nothing; the maps are those of a text.
    side = Side("videos", shots, "", maps=with_videos.look(task, (clip.read_bytes(),), "a cat"))
    assert side.maps is not None and side.maps.frames == 3
    assert '<div class="words video">' in drawing.sides([side], None)
    text, problem = page._task_text(CAPTION, "", "clips", shots, "a cat", "a dog")
    (tmp_path / "clips.json").write_text(text, encoding="utf-8")
    opened, *_, problem = page._opened(True, str(tmp_path / "clips.json"))
    assert problem == "" and [shot.image for shot in opened] == [shot.image for shot in shots]
    *_, last = run(*given[:6], "stills", *given[7:], "a cat", "a dog")
    assert "stills cannot be compared here: the model is one of still images" in last[3]


def test_only_models_of_videos_have_a_field_for_one(with_videos: Answers, answers: Answers) -> None:
    for of, shown in ((with_videos, True), (answers, False)):
        [field] = [one for one in page.build(of).blocks.values() if one.elem_id == "query-video"]
        assert field.visible is shown

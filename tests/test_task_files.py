"""Task files: what is written is read, by the library for any model and by the command line."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flamboyance as fl
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.cli import main
from flamboyance.images import ImageError
from flamboyance.task_files import TaskFile, data_url, from_data_url, read_task, write_task
from flamboyance.templates import Template
from tests.tiny import save_tiny_flamingo
from tests.videos.make import grey, write_video

ODD = Template("<image>{{A}} photo of {text}.", stops=("A photo", '"'), drop="!", strip=False)


@pytest.fixture(scope="module")
def mini():
    return fl.load_mini()


def test_a_task_comes_back_whole(tmp_path: Path, mini) -> None:
    """The file's own bytes, pixels of other images, and all parts of the template."""
    first = fl.examples.queries[0]
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    fl.FewShotTask(*mini, [(first, "a {ring} "), (Image.fromarray(pixels), 'ä "b"\n')], ODD).save(tmp_path / "t.json")
    found = read_task(tmp_path / "t.json")
    assert found.name == "t" and found.template == ODD
    (image, text), (other, said) = found.demonstrations
    assert (text, said) == ("a {ring} ", 'ä "b"\n')
    assert image == first.read_bytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(other))), pixels)


def test_a_loaded_task_answers_alike_for_each_model(tmp_path: Path, mini) -> None:
    directory = save_tiny_flamingo(tmp_path / "tiny")
    tiny = (
        fl.FlamingoForConditionalGeneration.from_pretrained(directory),
        fl.FlamingoProcessor.from_pretrained(directory),
    )
    made = fl.FewShotTask(*mini, fl.examples.demonstrations)
    made.save(tmp_path / "shapes.json")
    loaded = fl.FewShotTask.load(tmp_path / "shapes.json", *mini)
    assert loaded(fl.examples.queries) == made(fl.examples.queries)
    assert loaded.prompt(fl.examples.queries[0])[0] == made.prompt(fl.examples.queries[0])[0]
    other = fl.FewShotTask.load(tmp_path / "shapes.json", *tiny)
    expected = fl.FewShotTask(*tiny, fl.examples.demonstrations)
    assert other(fl.examples.queries[:1]) == expected(fl.examples.queries[:1])


def test_a_task_of_a_directory_has_no_images_for_a_file(tmp_path: Path, mini) -> None:
    fl.FewShotTask(*mini, fl.examples.demonstrations[:1]).save(tmp_path / "computed")
    loaded = fl.FewShotTask.load(tmp_path / "computed", *mini)
    with pytest.raises(ValueError, match="without its images"):
        loaded.save(tmp_path / "t.json")
    with pytest.raises(ValueError, match="without its images"):
        loaded.prompt(fl.examples.queries[0])


def test_the_command_line_reads_a_task_file(tmp_path: Path, mini, capsys: pytest.CaptureFixture[str]) -> None:
    """The same answers as from the folder of images; with the file's template, also another one."""
    fl.FewShotTask(*mini, fl.examples.demonstrations).save(tmp_path / "shapes.json")
    query = str(fl.examples.queries[0])
    assert main(["caption", query, "--demonstrations", str(tmp_path / "shapes.json"), "--shots", "2"]) == 0
    from_file = capsys.readouterr().out
    assert main(["caption", query, "--demonstrations", str(fl.examples.folder / "captioned"), "--shots", "2"]) == 0
    assert capsys.readouterr().out == from_file

    question = Template("<image>Question:{question} Short answer:{answer}", stops=("Question",))
    shots = [(fl.examples.queries[1], "what color is the cross?", "yellow")]
    write_task(tmp_path / "asked.json", TaskFile("asked", question, tuple(shots)))
    asked = ["ask", query, "--question", "what color is the ring?", "--demonstrations", str(tmp_path / "asked.json")]
    assert main(asked) == 0
    assert capsys.readouterr().out.split("\t")[1] == "green\n"
    assert main(["caption", query, "--demonstrations", str(tmp_path / "asked.json")]) == 2
    assert "is a question with its answer" in capsys.readouterr().err


def test_rows_of_another_template_are_not_continued(tmp_path: Path, mini, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = fl.templates.caption.pattern
    others = {
        "b": Template("<image>A photo of {text}."),
        "c": replace(fl.templates.caption, stops=("a",)),
        "d": replace(fl.templates.caption, drop="e"),
        "e": replace(fl.templates.caption, strip=False),
    }
    for name, template in {"a": fl.templates.caption, **others}.items():
        write_task(tmp_path / f"{name}.json", TaskFile("t", template, ((fl.examples.queries[1], "a large cross"),)))
    run = ["caption", str(fl.examples.queries[0]), "--output", str(tmp_path / "out.jsonl"), "--demonstrations"]
    assert main([*run, str(tmp_path / "a.json")]) == 0
    about = json.loads((tmp_path / "out.jsonl.settings.json").read_text(encoding="utf-8"))
    assert about["template"] == pattern, "as earlier versions wrote it, so that their files resume"
    capsys.readouterr()
    for name in others:
        assert main([*run, str(tmp_path / f"{name}.json")]) == 2
        assert "template" in capsys.readouterr().err
    assert main([*run, str(tmp_path / "c.json"), "--overwrite"]) == 0
    assert main([*run, str(tmp_path / "c.json")]) == 0
    assert main([*run, str(tmp_path / "d.json")]) == 2


def test_the_server_takes_a_task_file(tmp_path: Path) -> None:
    protocol = pytest.importorskip("flamboyance.serving.protocol")
    tasks = pytest.importorskip("flamboyance.serving.tasks")
    write_task(tmp_path / "t.json", TaskFile("drei Vögel, 1!", ODD, ((fl.examples.queries[0], "a ring"),)))
    body = protocol.TaskBody.model_validate_json((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert body.name == "drei-V-gel-1" and tasks.NAME.fullmatch(body.name)
    assert tasks.read_template(body.template) == ODD
    assert [sorted(shot) for shot in body.demonstrations] == [["image", "text"]]


PNG = data_url(fl.examples.queries[0])
SHOT = {"image": PNG, "text": "a"}
GOOD = {"template": {"pattern": "<image>{text}"}, "demonstrations": [SHOT]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["t.json", "not JSON"]),
        (json.dumps([1]), ["not a task file", "demonstrations"]),
        (json.dumps({**GOOD, "template": None}), ["template is None", "pattern"]),
        (json.dumps({**GOOD, "template": {"pattern": "{text}"}}), ["t.json", "<image>"]),
        (json.dumps({**GOOD, "template": {"pattern": "<image>{text}", "stops": "a"}}), ["template.stops", "'a'"]),
        (json.dumps({**GOOD, "template": {"pattern": "<image>{text}", "stops": [1]}}), ["stops", "[1]"]),
        (json.dumps({**GOOD, "template": {"pattern": "<image>{text}", "fields": ["x"]}}), ["template.fields"]),
        (json.dumps({**GOOD, "demonstrations": [SHOT, {"image": PNG}]}), ["demonstration 1", "image, text"]),
        (json.dumps({**GOOD, "demonstrations": [{"image": PNG, "text": 3}]}), ["demonstration 0", "text is 3"]),
        (json.dumps({**GOOD, "demonstrations": [{"image": "/etc/passwd", "text": "a"}]}), ["demonstration 0", "data:"]),
        (json.dumps({**GOOD, "demonstrations": [{"image": "data:image/png;base64,??", "text": "a"}]}), ["base64"]),
        (
            json.dumps({**GOOD, "demonstrations": [{"image": "data:image/png;base64,QUJD", "text": "a"}]}),
            ["demonstration 0", "not an image"],
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path: Path, mini, content: str, words: list[str]) -> None:
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are what is checked
        fl.FewShotTask.load(tmp_path / "t.json", *mini)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_images_are_written_as_they_are() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "WEBP")
    url = data_url(buffer.getvalue())
    assert url == f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    assert from_data_url(url, "it") == buffer.getvalue()
    file = fl.examples.queries[0]
    assert data_url(file.resolve().as_uri()) == data_url(str(file)) == data_url(file) == PNG
    with pytest.raises(ValueError, match="a list of frames"):
        data_url([Image.new("RGB", (4, 4))] * 2)


def test_a_task_file_holds_animations(tmp_path: Path, mini) -> None:
    pictures = [Image.new("RGB", (32, 32), name) for name in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP"):
        file = tmp_path / f"a.{kind.lower()}"
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=100)
        url = data_url(file)
        assert url.startswith(f"data:image/{kind.lower()};base64,")
        assert from_data_url(url, "it") == file.read_bytes() == from_data_url(data_url(file.read_bytes()), "it")
        with Image.open(file) as opened, pytest.raises(ValueError, match="opened with Pillow"):
            data_url(opened)
        cut = f"data:image/{kind.lower()};base64," + base64.b64encode(file.read_bytes()[:20]).decode()
        with pytest.raises(ImageError, match="demonstration 1"):
            from_data_url(cut, "demonstration 1")


def test_a_task_file_holds_videos(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mp4", [grey(n) for n in range(20)])
    assert isinstance(clip, Path)
    url = data_url(clip)
    assert url.startswith("data:video/mp4;base64,") and from_data_url(url, "it") == clip.read_bytes()
    assert data_url(clip.read_bytes()) == url
    directory = save_tiny_flamingo(tmp_path, max_frames=4)
    parts = FlamingoForConditionalGeneration.from_pretrained(directory), FlamingoProcessor.from_pretrained(directory)
    picture = fl.examples.queries[0]
    task = fl.FewShotTask(*parts, demonstrations=[(clip, "a red cat"), (picture, "a dog")])
    task.save(tmp_path / "task.json")
    again = fl.FewShotTask.load(tmp_path / "task.json", *parts)
    assert again([clip, picture]) == task([clip, picture])
    assert again.prefix is not None and task.prefix is not None
    assert torch.equal(again.prefix.media.latents, task.prefix.media.latents)
    cut = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()[:200]).decode()
    with pytest.raises(ImageError, match="it: "):
        from_data_url(cut, "it")

"""The `flamboyance` command with a tiny model: inputs, outputs, resuming, errors."""

import csv
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flamboyance.cli import main
from flamboyance.commands.output import RowFile, complete_lines
from flamboyance.images import loading
from flamboyance.images.listing import find_images
from tests.tiny import save_tiny_flamingo

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_flamingo(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images at two depths, a text file and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, colour in (("b.png", "red"), ("a.JPG", "green"), ("more/c.png", "blue")):
        Image.new("RGB", (20, 16), COLOURS[colour]).save(folder / name)
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "._a.JPG").write_bytes(b"what some systems leave beside a file")
    return folder


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """A folder of two captioned images; also as captions.csv/.jsonl and questions.csv/.jsonl beside it."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    captions, questions = [], []
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), COLOURS[colour]).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} square\n", encoding="utf-8")
        row = {"image": f"captioned/{colour}.png"}
        captions.append(row | {"text": f"a {colour} square"})
        questions.append(row | {"question": "what is this ?", "answer": f"a {colour} square", "id": "7"})
    for name, rows in (("captions", captions), ("questions", questions)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that the command says when it refuses."""
    capsys.readouterr()
    try:
        status = run(*arguments)
    except SystemExit as end:  # argparse's way
        status = end.code
    assert status == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


# What goes in


def test_folder_to_standard_output(model: str, photos: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("caption", photos, "--model", model, "--beams", 1, "--max-new-tokens", 3) == 0
    said = capsys.readouterr()
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [line[0] for line in lines] == [str(photos / name) for name in ("a.JPG", "b.png", "more/c.png")]
    assert all(len(line) == 2 for line in lines)
    assert said.err.endswith("3 images done\n")


@pytest.mark.skipif(sys.platform == "win32", reason="such names do not exist there")
def test_control_characters_of_names_do_not_reach_the_terminal(model: str, photos: Path, capsys) -> None:
    (photos / "b.png").rename(photos / "b\n\x1b[2J\t.png")
    (photos / "bad\x07.png").write_bytes(b"no image")
    assert run("caption", photos, "--model", model, "--beams", 1, "--max-new-tokens", 1) == 0
    said = capsys.readouterr()
    names = [line.split("\t")[0] for line in said.out.splitlines()]
    assert names == [str(photos / name) for name in ("a.JPG", "b\\n\\u001b[2J\\t.png", "more/c.png")]
    assert "bad\\u0007.png" in said.err and not set("\x1b\x07") & set(said.err)
    assert "gone\\u001b" in fails(capsys, "caption", "gone\x1b.png")


@pytest.mark.parametrize("source", ["captioned", "captions.csv", "captions.jsonl"])
def test_captions_from_every_kind_of_demonstrations(
    model: str, photos: Path, demonstrations: Path, tmp_path: Path, source: str
) -> None:
    common = ("--model", model, "--beams", 2, "--max-new-tokens", 4)
    given = tmp_path / source
    # The folder is read in the order of its names.
    reference = [("blue", "a blue square"), ("red", "a red square")]
    if given.suffix:
        reference.reverse()
    assert run("caption", photos, *common, "--demonstrations", given, "--output", tmp_path / "out.jsonl") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out.jsonl")] == _library_captions(
        model, [(demonstrations / f"{colour}.png", text) for colour, text in reference], photos
    )


def _library_captions(model: str, demonstrations: list, photos: Path) -> list[str]:
    import flamboyance as fl

    task = fl.FewShotTask(
        fl.FlamingoForConditionalGeneration.from_pretrained(model),
        fl.FlamingoProcessor.from_pretrained(model),
        demonstrations=demonstrations,
        template=fl.templates.caption,
    )
    return task([photos / name for name in ("a.JPG", "b.png", "more/c.png")], max_new_tokens=4, num_beams=2)


@pytest.mark.parametrize("source", ["questions.csv", "questions.jsonl", "captioned"])
def test_ask(model: str, photos: Path, demonstrations: Path, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out.csv"
    question = 'is this a cat, or a "dog"?'
    common = ("ask", photos, "--model", model, "--output", out)
    common += ("--demonstrations", tmp_path / source, "--shots", 1, "--beams", 1)
    assert run(*common, "--question", question) == 0
    rows = rows_of(out)
    assert [Path(row["image"]).name for row in rows] == ["a.JPG", "b.png", "c.png"]
    assert {row["question"] for row in rows} == {question}
    assert list(rows[0]) == ["image", "question", "answer", "error"]
    # Another question goes to the same file; the same one is done already.
    assert run(*common, "--question", "what is this ?") == 0
    assert run(*common, "--question", "what is this ?") == 0
    assert len(rows_of(out)) == 6


def test_classify(model: str, photos: Path, demonstrations: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n\ndog\nred square\n", encoding="utf-8")
    common = ("classify", photos, "--model", model, "--demonstrations", demonstrations)
    assert run(*common, "--labels", labels, "--output", tmp_path / "out.jsonl") == 0
    assert run(*common, "--labels", "cat,dog, red square", "--output", tmp_path / "out.csv") == 0
    for row, flat in zip(rows_of(tmp_path / "out.jsonl"), rows_of(tmp_path / "out.csv"), strict=True):
        probabilities = row["probabilities"]
        assert set(probabilities) == {"cat", "dog", "red square"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(probabilities, key=probabilities.get) == flat["label"]
        assert float(flat["probabilities.red square"]) == pytest.approx(probabilities["red square"], abs=2e-6)


# Resuming, and bad images


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_resumes_after_a_cut_last_line(
    model: str, photos: Path, tmp_path: Path, suffix: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out{suffix}"
    arguments = ("caption", photos, "--model", model, "--beams", 1, "--output", out, "--max-new-tokens", 3)
    assert run(*arguments) == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    done = b"".join(lines[:-2])
    for rest in (lines[-2][:-1], lines[-2][:12], b""):
        out.write_bytes(done + rest)
        capsys.readouterr()
        assert run(*arguments) == 0
        assert out.read_bytes() == whole
        assert "2 images done, 1 was done before" in capsys.readouterr().err
    out.write_bytes(whole[:5])
    assert run(*arguments) == 0
    assert out.read_bytes() == whole
    # Nothing left to do: not even the model is opened.
    monkeypatch.setattr("flamboyance.commands.describe.load", None)
    assert run(*arguments) == 0


def test_bad_images_become_rows(model: str, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (photos / "empty.jpg").touch()
    out = tmp_path / "out.jsonl"
    arguments = ("caption", photos, "--model", model, "--beams", 1, "--batch-size", 2)
    assert run(*arguments, "--output", out) == 0
    assert "3 images done, 2 could not be read" in capsys.readouterr().err
    rows = {Path(row["image"]).name: row for row in rows_of(out)}
    assert list(rows) == ["a.JPG", "b.png", "bad.png", "empty.jpg", "c.png"]
    assert {name for name, row in rows.items() if "error" in row} == {"bad.png", "empty.jpg"}
    assert all(("text" in row) != ("error" in row) for row in rows.values())
    assert "bad.png" in rows["bad.png"]["error"]

    assert run(*arguments) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    assert "empty.jpg" in said.err
    assert run("caption", photos / "bad.png", "--model", model) == 1


def test_rows_do_not_depend_on_the_batch(model: str, photos: Path, demonstrations: Path, tmp_path: Path) -> None:
    for size in (1, 3):
        out = tmp_path / f"{size}.jsonl"
        common = ("caption", photos, "--model", model, "--demonstrations", demonstrations, "--output", out)
        assert run(*common, "--batch-size", size) == 0
    assert rows_of(tmp_path / "1.jsonl") == rows_of(tmp_path / "3.jsonl")


def test_complete_lines() -> None:
    assert complete_lines(b'{"a": 1}\n{"b"', quoted=False) == b'{"a": 1}\n'
    assert complete_lines(b'a,"x\ny"\nb,"x\nz', quoted=True) == b'a,"x\ny"\n'
    assert complete_lines(b'a,"say ""hi""\nyou"\n', quoted=True) == b'a,"say ""hi""\nyou"\n'
    assert complete_lines(b"nothing whole", quoted=True) == b""


def test_a_row_may_hold_anything(tmp_path: Path) -> None:
    odd = 'one\ntwo, "three"\u2028four\u00e9'
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"out{suffix}"
        for name in ("a", "b"):
            with RowFile(out, ["image", "text", "error"]) as rows:
                assert ({"image": "a"} in rows) == (name == "b")
                rows.begin([{"image": name}])
                rows.append({"image": name, "text": odd})
        with RowFile(out, ["image", "text", "error"]) as rows:
            assert {"image": "b"} in rows
        text = out.read_bytes().decode()
        assert text.count("two") == 2


def test_a_reader_that_has_had_enough_of_a_table(monkeypatch) -> None:
    def as_rich_does(_):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904  rich leaves it as the context

    monkeypatch.setattr("flamboyance.commands.info.info", as_rich_does)
    assert main(["info", "mini"]) == 141


def test_a_closed_output_is_as_good_as_none(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["caption", str(photos)]) == 0


# What is refused


def test_refusals_of_images_and_arguments(photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "notes.jsonl").write_text("my notes\nand more", encoding="utf-8")
    (tmp_path / "other.csv").write_text("name,age\nx,1\n", encoding="utf-8")
    (tmp_path / "answers.jsonl").write_text('{"image": "a", "question": "q", "answer": "b"}\n', encoding="utf-8")
    cases = [
        (("caption", tmp_path / "none"), "no image"),
        (("caption", tmp_path / "gone.png"), "gone.png"),
        (
            ("caption", photos, "--output", tmp_path / "gone" / "o.csv"),
            "gone/o.csv",
        ),
        (("caption", photos, "--output", tmp_path / "file" / "o.csv"), "Not a directory"),
        (("caption", photos, "--output", tmp_path / "o.txt"), "o.txt"),
        (("caption", photos, "--output", tmp_path / "notes.jsonl"), "line 1"),
        (("caption", photos, "--output", tmp_path / "other.csv"), "name,age"),
        (("caption", photos, "--output", tmp_path / "answers.jsonl"), "answers.jsonl"),
        (("caption", photos, "--overwrite"), "--overwrite"),
        (("caption", photos, "--batch-size", 0), "--batch-size: '0'"),
        (("caption", photos, "--beams", "three"), "--beams: 'three'"),
        (("caption", photos, "--max-new-tokens", 0), "--max-new-tokens: '0'"),
        (("caption", photos, "--device", "tpu"), "'tpu'"),
        (("caption",), "IMAGE"),
        (("describe", photos), "'describe'"),
        ((), "COMMAND"),
        (("caption", photos, "--shots", 2), "--demonstrations"),
        (("caption", photos, "--shots", -1), "--shots: '-1'"),
        (("caption", photos, "--model", tmp_path / "none"), "config.json"),
        (("ask", photos, "--question", " "), "--question"),
        (("classify", photos, "--labels", "cat"), "two or more"),
        (("classify", photos, "--labels", "cat,dog,cat"), "cat"),
        (("convert", tmp_path / "gone.pt", tmp_path / "to"), "gone.pt"),
        (("convert", tmp_path / "file", tmp_path / "file"), "is a file"),
        (("info", tmp_path / "none"), "config.json"),
        (("info", "mini", "--model", tmp_path), "--model"),
        (("info", "OpenFlamingo-3B-vitl-mpt1"), "OpenFlamingo-3B-vitl-mpt1b"),
        (("caption", photos, "--beems", 3), "'--beems'; did you mean --beams?"),
        (("captoin", photos), "did you mean caption?"),
        (("train", "finetune", "--data", "photos/"), "key=value"),
        (("train", "finetun", "output=x"), "mean finetune?"),
        (("train", "finetune", "data=x", "output=y", "step=3"), "steps"),
        (("caption", ""), "empty"),  # as an unset variable gives it
        (("caption", photos, "--model", ""), "--model"),
        (("caption", photos, "--output="), "--output"),
        (("caption", "https://example.com/cat.jpg"), "URL"),
        (("caption", photos, "--demonstrations", "https://example.com/d.csv"), "URL"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, *arguments)
    # What was there is still there.
    assert (tmp_path / "notes.jsonl").read_text(encoding="utf-8") == "my notes\nand more"
    assert (tmp_path / "other.csv").read_text(encoding="utf-8") == "name,age\nx,1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "", "no demonstration"),
        ("d.csv", "image,text\n", "no demonstration"),
        ("d.csv", "file,caption\na.JPG,hello\n", "line 2.*'image'.*file, caption"),
        ("d.csv", "image,text\na.JPG,\n", "line 2.*text.*empty"),
        ("d.csv", "image,text\na.JPG\n", "line 2.* 1 .* 2 .*image,text"),
        ("d.csv", "image,text\na.JPG,a dog, two cats\n", "line 2.* 3 .* 2 .*image,text"),
        ("d.csv", 'image,text\na.JPG,"a dog\nb.png,a cat\n', "quote"),
        ("d.csv", "image,text\n../secret.jpg,hello\n", r"line 2.*\.\./secret\.jpg.*outside"),
        ("d.csv", "image,text\ngone.png,hello\n", r"gone\.png"),
        ("d.csv", "image,question,answer\na.JPG,what ?,this\n", "image,text"),
        ("d.csv", "image,question\na.JPG,what ?\n", "image,question.*image,text"),
        ("d.jsonl", "", "no demonstration"),
        ("d.jsonl", '{"image": "a.JPG", "text": "x"}\n{"image"\n', "line 2, column 9.*JSON"),
        ("d.jsonl", '["a.JPG", "x"]\n', "line 1.*list"),
        ("d.jsonl", '{"image": "a.JPG", "words": "x"}\n', "image,words"),
        ("d.tsv", b"image\ttext\na.JPG\tcaf\xe9\n", "line 2.*UTF-8"),
        ("d.jsonl", '{"image": "a.JPG", "text": 3.5}\n', r"text.*3\.5"),
        ("d.txt", "image,text\n", r"folder of images.*\.csv"),
        ("gone.csv", None, r"gone\.csv"),
        (".", None, r"\.txt"),
    ],
)
def test_refusals_of_demonstrations(photos: Path, name: str, content: str | bytes | None, message: str, capsys) -> None:
    if content is not None:
        (photos / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(message, fails(capsys, "caption", photos, "--demonstrations", photos / name))


def test_too_few_demonstrations(photos: Path, demonstrations: Path, capsys) -> None:
    said = fails(capsys, "caption", photos, "--demonstrations", demonstrations, "--shots", 3)
    assert re.search("--shots 3.* 2 demonstrations", said)


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("caption", tmp_path / "gone.png", "--debug")


# The rest


def test_info_of_a_directory(model: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run("info", model) == 0
    said = capsys.readouterr().out
    for word in ("vision", "resampler", "cross_attention", "added_tokens", "language_model", "opt", "frozen"):
        assert word in said
    assert "before layers 0, 1" in " ".join(said.split())
    assert "+0.7616" in said  # tanh(1), the tiny model's attention gate
    assert "+0.4621" in said  # tanh(0.5)


def test_info_as_json(model: str, capsys) -> None:
    assert run("info", model, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    names = [part["name"] for part in told["parts"]]
    assert names == ["vision", "resampler", "cross_attention", "added_tokens", "language_model"]
    counts = told["parameters"]
    assert set(counts) == {"total", "trainable", *names} - {"language_model"} | {"language"}
    assert counts["total"] == sum(part["parameters"] for part in told["parts"]) > counts["trainable"] > 0
    assert counts["trainable"] == sum(counts[name] for name in ("resampler", "cross_attention", "added_tokens"))
    assert told["gates"][1]["attention"] == pytest.approx(0.7616, abs=1e-4)
    assert [gate["before_layer"] for gate in told["gates"]] == told["layers"] == [0, 1]
    assert set(told["versions"]) == {"flamboyance", "torch", "transformers", "python", "platform"}
    assert run("info", "openflamingo/OpenFlamingo-3B-vitl-mpt1b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gates"] is None


def test_info_counts_what_trains(model: str) -> None:
    from flamboyance.commands.info import outline, parts

    outlined, gates = outline(model)
    rows = {part.name: part for part in parts(outlined)}
    assert gates == [(1.0, 0.5), (1.0, 0.5)]
    assert rows["vision"].trained == rows["language_model"].trained == 0
    assert all(rows[n].trained == rows[n].parameters > 0 for n in ("resampler", "cross_attention", "added_tokens"))
    assert rows["added_tokens"].parameters == 32 * len(outlined.config.added_tokens)


def test_info_of_a_released_model_needs_no_download(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run("info", "openflamingo/OpenFlamingo-3B-vitl-mpt1b") == 0
    said = capsys.readouterr().out
    assert "mosaic_gpt" in said
    assert "24 blocks, before layers 0–23 (cross_attn_every_n_layers=1)" in said


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        assert name in fails(capsys, "convert", tmp_path / name, tmp_path / "to")
        assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("held", ["config.json", "model.safetensors"])
def test_convert_keeps_a_model_that_is_there(tmp_path: Path, capsys, held: str) -> None:
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / held).write_text("{}", encoding="utf-8")
    said = fails(capsys, "convert", tmp_path / "a.pt", tmp_path / "to")
    assert held in said and "--overwrite" in said and "a.pt" not in said
    assert "a.pt" in fails(capsys, "convert", tmp_path / "a.pt", tmp_path / "to", "--overwrite"), "it is read"


def test_warnings_take_one_line(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(arguments: object) -> int:
        warnings.warn("all gates\nare shut", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("flamboyance.commands.convert.convert", convert)
    assert run("convert", "a", "b") == 0
    assert capsys.readouterr().err == "flamboyance: warning: all gates are shut\n"


def test_help(capsys) -> None:
    for arguments, words in (
        ([], ("demo", "caption", "ask", "classify", "info", "convert", "examples:")),
        (["caption"], ("--demonstrations", "--batch-size", "example:", "a CSV file")),
    ):
        with pytest.raises(SystemExit) as end:
            run(*arguments, "--help")
        assert end.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)


def test_as_a_process(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    command = [sys.executable, "-m", "flamboyance.cli", "caption", str(gone)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert (
        refused.stderr.startswith("flamboyance: ") and str(gone) in refused.stderr and refused.stderr.count("\n") == 1
    )


def test_a_picture_that_preprocessing_refuses_costs_its_own_row(model: str, tmp_path: Path) -> None:
    """It opens, so it is no broken file; but its shortest edge cannot be brought to the model's size."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    Image.new("RGB", (1, 700_000)).save(folder / "b.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "c.png")
    out = tmp_path / "out.jsonl"
    assert main(["caption", str(folder), "--model", model, "--output", str(out), "--max-new-tokens", "2"]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert ["error" in row for row in rows] == [False, True, False]
    assert "too long and thin" in rows[1]["error"]


def test_each_image_is_decoded_once(
    model: str, photos: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others of the batch are damaged, or too long and thin to be preprocessed."""
    (photos / "damaged.png").write_bytes(b"no image")
    Image.new("RGB", (1, 700_000)).save(photos / "thin.png")
    decoded: Counter[str] = Counter()
    decode = loading._open

    def counted(file: Path, *given: Any) -> Image.Image:
        decoded[Path(file).name] += 1
        return decode(file, *given)

    monkeypatch.setattr(loading, "_open", counted)
    assert run("caption", photos, "--model", model, "--demonstrations", demonstrations, "--beams", 1) == 0
    assert decoded == Counter(file.name for file in find_images([photos, demonstrations]))


def test_demonstrations_outside_of_their_folder_on_request(model: str, photos: Path, demonstrations: Path) -> None:
    (photos / "d.csv").write_text(f"image,text\n{demonstrations / 'red.png'},a red square\n", encoding="utf-8")
    common = ("caption", photos, "--model", model, "--demonstrations", photos / "d.csv", "--beams", 1)
    assert run(*common) == 2
    assert run(*common, "--outside") == 0

"""A file of results: whose settings its rows have, what is tried again, one command at a time, any file name."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flamboyance.cli import main
from flamboyance.commands.output import RowFile
from tests.tiny import save_tiny_flamingo


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models that differ in their weights alone."""
    return [str(save_tiny_flamingo(tmp_path_factory.mktemp(f"tiny{seed}"), seed)) for seed in (0, 1)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 16), colour).save(folder / name)
    return folder


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder = tmp_path / "captioned"
    folder.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} square", encoding="utf-8")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_other_settings_are_refused(models, photos, captioned, tmp_path, suffix, capsys) -> None:
    out = tmp_path / f"out{suffix}"
    base = {"--model": models[0], "--beams": 1, "--max-new-tokens": 3, "--demonstrations": captioned}

    def again(**changed: object) -> int:
        options = base | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        given = [word for name, value in options.items() if value is not None for word in (name, value)]
        capsys.readouterr()
        return run("caption", photos, "--output", out, *given)

    assert again() == 0
    whole, about = out.read_bytes(), (tmp_path / f"out{suffix}.settings.json").read_bytes()
    (captioned / "red.txt").write_text("a red cat", encoding="utf-8")
    for changed, words in (
        ({"model": models[1]}, "model"),
        ({"model": None}, "mini"),
        ({"beams": 2}, "beams"),
        ({"max_new_tokens": 4}, "max new tokens"),
        ({"demonstrations": None}, "demonstrations"),
        ({"shots": 1}, "demonstrations"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({}, "demonstrations"),  # the same file name, other texts
    ):
        assert again(**changed) == 2
        assert words in capsys.readouterr().err
        assert out.read_bytes() == whole
    (captioned / "red.txt").write_text("a red square", encoding="utf-8")
    assert again() == again(batch_size=1) == 0
    assert out.read_bytes() == whole
    assert (tmp_path / f"out{suffix}.settings.json").read_bytes() == about

    # The same model and demonstrations elsewhere are the same.
    moved = tmp_path / "moved"
    captioned.rename(moved)
    assert again(demonstrations=moved) == 0


def test_overwrite_starts_anew(models, photos, tmp_path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    common = ("caption", photos, "--model", models[0], "--output", out, "--max-new-tokens", 2)
    assert run(*common, "--beams", 1) == 0
    before = out.read_bytes()
    # A mistake loses nothing.
    assert run("caption", photos, "--model", tmp_path / "none", "--output", out, "--overwrite") == 2
    assert out.read_bytes() == before
    assert run(*common, "--beams", 2, "--overwrite") == 0
    assert len(rows_of(out)) == 2
    assert run(*common, "--beams", 2) == 0
    assert run(*common, "--beams", 1) == 2
    # Rows whose settings are not known are not added to either.
    (tmp_path / "out.jsonl.settings.json").unlink()
    assert run(*common, "--beams", 2) == 2
    assert "out.jsonl.settings.json" in capsys.readouterr().err


def test_a_backbone_outside_of_the_directory_is_part_of_the_model(tmp_path) -> None:
    from flamboyance.commands.output_identity import directory_digest

    (tmp_path / "model").mkdir()
    (tmp_path / "language").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"vision": {"name": null}, "language": "../language"}', encoding="utf-8"
    )
    (tmp_path / "language" / "model.safetensors").write_bytes(b"1")
    before = directory_digest(tmp_path / "model")
    assert directory_digest(tmp_path / "model") == before
    (tmp_path / "language" / "model.safetensors").write_bytes(b"2")
    assert directory_digest(tmp_path / "model") != before


def test_large_files_are_told_apart_by_samples(tmp_path, monkeypatch) -> None:
    from flamboyance.commands import output_identity as settings

    monkeypatch.setattr(settings, "WHOLE", 1000)
    monkeypatch.setattr(settings, "SAMPLE", 10)
    digests = set()
    for content in (b"a" * 5000, b"b" * 5000, b"a" * 4999 + b"b", b"b" + b"a" * 4999, b"a" * 5001):
        (tmp_path / "model.safetensors").write_bytes(content)
        digests.add(settings.directory_digest(tmp_path))
    assert len(digests) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs")
def test_an_output_that_is_no_regular_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="not a regular file"):
        RowFile(tmp_path / "out.jsonl", ["image", "error"])


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "out.jsonl")
    for error in ("no image", ""):
        with RowFile(tmp_path / "link.jsonl", ["image", "text", "error"]) as rows:
            rows.begin([{"image": "a"}])
            rows.append({"image": "a", "error": error} if error else {"image": "a", "text": "b"})
    assert (tmp_path / "link.jsonl").is_symlink()
    assert rows_of(tmp_path / "out.jsonl") == [{"image": "a", "text": "b"}]


def test_labels_are_settings(models, photos, tmp_path) -> None:
    common = ("classify", photos, "--model", models[0], "--output", tmp_path / "out.jsonl")
    assert run(*common, "--labels", "cat,dog") == 0
    assert run(*common, "--labels", "cat,dog") == 0
    assert run(*common, "--labels", "cat,dog,red") == 2
    assert len(rows_of(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_failed_rows_are_tried_again(models, photos, tmp_path, suffix, capsys) -> None:
    out = tmp_path / f"out{suffix}"
    picture = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(picture[:40])
    arguments = ("caption", photos, "--model", models[0], "--beams", 1, "--max-new-tokens", 2, "--output", out)
    assert run(*arguments) == 0
    assert [bool(row.get("error")) for row in rows_of(out)] == [True, False]
    assert run(*arguments) == 0  # it still cannot be read; the other one can
    assert sorted(bool(row.get("error")) for row in rows_of(out)) == [False, True]
    (photos / "a.png").write_bytes(picture)
    assert run(*arguments) == 0
    assert "1 image done, 1 was done before" in capsys.readouterr().err
    rows = rows_of(out)
    assert sorted(Path(row["image"]).name for row in rows) == ["a.png", "b.png"]
    assert not any(row.get("error") for row in rows)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    hold = (
        "import sys; from flamboyance.commands.output import RowFile\n"
        f"rows = RowFile({str(out)!r}, ['image', 'text', 'error'])\n"
        "rows.begin([]); rows.append({'image': 'a', 'text': 'b'}); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(BlockingIOError, match="is writing to"):
            RowFile(out, ["image", "text", "error"])
        process.kill()
    # The lock does not outlive a killed process, and neither does a row.
    with RowFile(out, ["image", "text", "error"]) as rows:
        assert {"image": "a"} in rows


def test_the_lock_is_kept_when_failed_rows_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    columns = ["image", "text", "error"]
    with RowFile(out, columns) as rows:
        rows.begin([])
        rows.append({"image": "a", "error": "no image"})
    with RowFile(out, columns) as rows:
        rows.begin([{"image": "a"}])
        assert out.read_bytes() == b""
        with pytest.raises(BlockingIOError, match="another"):
            RowFile(out, columns)
        rows.append({"image": "a", "text": "b"})
    assert rows_of(out) == [{"image": "a", "text": "b"}]


def test_nothing_is_left_of_a_run_that_did_not_start(tmp_path: Path) -> None:
    with RowFile(tmp_path / "out.csv", ["image", "error"]) as rows:
        assert {"image": "a"} not in rows
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_name_that_is_not_utf8(models, photos, tmp_path, suffix) -> None:
    out = tmp_path / f"out{suffix}"
    odd = os.fsdecode(os.fsencode(photos) + b"/c\xff\xe9.png")
    try:
        Image.new("RGB", (8, 8)).save(odd)
    except OSError:  # a file system that takes UTF-8 alone
        return
    arguments = ("caption", photos, "--model", models[0], "--beams", 1, "--max-new-tokens", 2, "--output", out)
    assert run(*arguments) == run(*arguments) == 0
    rows = rows_of(out)
    assert len(rows) == 3
    assert not any(row.get("error") for row in rows)
    if suffix == ".jsonl":  # the very bytes
        assert os.fsencode(rows[2]["image"]) == os.fsencode(odd)
    assert rows[2]["image"].encode("utf-8", "backslashreplace").endswith(rb"c\udcff\udce9.png")


def test_a_name_that_is_not_utf8_on_standard_output(models, photos) -> None:
    odd = os.fsencode(photos) + b"/c\xff.png"
    with contextlib.suppress(OSError):
        Image.new("RGB", (8, 8)).save(os.fsdecode(odd))
    if not os.path.exists(odd):
        return
    read, write = os.pipe()
    saved = sys.stdout
    sys.stdout = open(write, "w", encoding="utf-8")  # noqa: SIM115
    try:
        for options in ((), ("--json",)):
            assert run("caption", photos, "--model", models[0], "--beams", 1, "--max-new-tokens", 2, *options) == 0
    finally:
        sys.stdout.close()
        sys.stdout = saved
    with open(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert lines[2].startswith(odd + b"\t")
    assert os.fsencode(json.loads(lines[5])["image"]) == odd


def test_json_rows_and_summary(models, photos, tmp_path, capsys) -> None:
    (photos / "c.png").write_bytes(b"no image")
    common = ("ask", photos, "--question", "what is this ?", "--model", models[0], "--json", "--max-new-tokens", 2)
    assert run(*common) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "image", "question"]] * 2 + [["error", "image", "question"]]
    for before in (0, 2):
        assert run(*common, "--output", tmp_path / "out.csv") == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary == {
            "output": str(tmp_path / "out.csv"), "done": 2 - before, "done_before": before, "failed": 1,
        }  # fmt: skip


def test_the_embedded_model_is_named_and_unknown_words_too(photos, tmp_path, capsys) -> None:
    assert run("classify", photos, "--labels", "cat,dog,car") == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert "mini" in first and "--model" in first
    assert "cat, dog, car (labels)" in second
    assert run("ask", photos, "--question", "what color is the zebra ?", "--model", "mini") == 0
    said = capsys.readouterr().err.splitlines()
    assert "zebra (question)" in said[0] and "color" not in said[0]
    assert run("classify", photos, "--labels", "red,blue", "--model", "mini") == 0
    assert capsys.readouterr().err == "2 images done\n"


def test_rows_with_long_values_are_read_again(tmp_path) -> None:
    long = "word " * 60_000  # more than the 131,072 characters at which Python's reader stops by itself
    for _ in range(2):
        with RowFile(tmp_path / "out.csv", ["image", "question"], ["image", "question"]) as rows:
            row = {"image": "a", "question": long}
            if row not in rows:
                rows.begin([row])
                rows.append(row)
    assert len(rows_of(tmp_path / "out.csv")) == 1


def test_a_value_may_have_any_line_break(tmp_path) -> None:
    values = ["a\rb.png", "a\nb.png", "a\r\nb.png", 'a"\r"b', "\r"]
    for value in values:
        with RowFile(tmp_path / "out.csv", ["image", "text"]) as rows:
            rows.begin([])
            rows.append({"image": value, "text": value})
    with RowFile(tmp_path / "out.csv", ["image", "text"]) as rows:
        assert all({"image": value} in rows for value in values)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == values


def test_a_file_that_is_read_is_not_written(models, captioned, tmp_path, capsys) -> None:
    table, labels = tmp_path / "shown.csv", tmp_path / "labels.csv"
    table.write_text("image,text\ncaptioned/red.png,red\ncaptioned/blue.png,blue\n", encoding="utf-8")
    labels.write_text("label\nred\nblue\n", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(table)
    before = [table.read_bytes(), labels.read_bytes()]
    common = (captioned, "--model", models[0], "--overwrite", "--demonstrations", table)
    assert run("caption", *common, "--output", table) == 2
    assert run("caption", *common, "--output", tmp_path / "link.csv") == 2
    assert run("classify", *common, "--labels", labels, "--output", labels) == 2
    assert "is read" in capsys.readouterr().err
    assert [table.read_bytes(), labels.read_bytes()] == before

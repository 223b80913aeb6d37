"""Pictures that are replaced under their old names while an evaluation is stopped."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.evaluation.results import read_rows
from tests.evaluation.small_tasks import captions, draw

CELLS = {"shots": (2,), "seeds": (0, 1)}


def brightness(demonstrations, query) -> str:
    """An answer that depends on every picture."""
    return " ".join(str(image.getpixel((0, 0))[0]) for one in (*demonstrations, query) for image in one.images)


class Asked:
    """Answers, and stops after some."""

    def __init__(self, most: int = 1000):
        self.ids: list[str] = []
        self.most = most

    def __call__(self, demonstrations, query) -> str:
        self.ids.append(query.id)
        if len(self.ids) > self.most:
            raise KeyboardInterrupt
        return brightness(demonstrations, query)


def evaluate(task, answer, output: Path, **options):
    return fl.evaluate(task, answer, output=output, name="one", batch_size=1, **CELLS | options)


def stopped(task, output: Path) -> list[dict]:
    """The rows of the second cell, in which the evaluation was stopped; the first one is finished."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Asked(16), output)
    (file,) = (output / "captions" / "2-random-1").glob("predictions-*.jsonl")
    return read_rows(file)


def images(row) -> list[str]:
    return [row["image"], *(one["image"] for one in row["demonstrations"])]


def redraw(image: Path | str) -> None:
    Image.new("RGB", (16, 16), "red").save(image)


@pytest.mark.parametrize("part", ["support", "queries"])
def test_answers_to_replaced_pictures_are_asked_for_again(part, tmp_path):
    task, output = captions(tmp_path / "data"), tmp_path / "run"
    before = stopped(task, output)
    drawn = Path((before[0] if part == "queries" else before[0]["demonstrations"][0])["image"])
    seen = {row["id"] for row in before if str(drawn) in images(row)}
    redraw(drawn)
    with pytest.raises(ValueError, match=rf"{drawn.name}.*2-random-0$"):
        evaluate(task, asked := Asked(), output)
    with pytest.raises(ValueError, match=r"2-random-0$"):  # nor does another cell come beside it
        evaluate(task, asked, output, shots=(3,))
    assert asked.ids == [] and len(read_rows(output / "captions/2-random-0/predictions.jsonl")) == 9
    shutil.rmtree(output / "captions/2-random-0")
    found = evaluate(task, asked, output)
    left = {f"q{i}" for i in range(9)} - {row["id"] for row in before}
    assert 0 < len(seen) < len(before) and sorted(asked.ids[9:]) == sorted(left | seen)
    evaluate(task, Asked(), tmp_path / "anew")
    cells = [run / "captions/2-random-1/predictions.jsonl" for run in (output, tmp_path / "anew")]
    assert read_rows(cells[0]) == read_rows(cells[1])
    drawn.unlink()  # what is not there any more was not replaced
    assert found == evaluate(task, asked, output)


def test_pictures_that_were_moved_are_those_of_the_task(tmp_path):
    """Copies in another folder: what happens to the old ones does not count, what happens to the copies does."""
    before = stopped(captions(tmp_path / "data"), tmp_path / "run")
    task = captions(tmp_path / "copies")
    for image in (tmp_path / "data").rglob("*.png"):
        redraw(image)
    draw(tmp_path / "copies/asked", 9, 1)
    shutil.copytree(tmp_path / "run", tmp_path / "second")
    evaluate(task, asked := Asked(), tmp_path / "run")
    assert len(asked.ids) == 9 - len(before)
    shutil.rmtree(tmp_path / "second/captions/2-random-0")
    redraw(tmp_path / "copies/asked" / Path(before[0]["image"]).name)
    evaluate(task, asked := Asked(), tmp_path / "second")
    assert len(asked.ids) == 9 + 9 - len(before) + 1


def test_what_earlier_versions_wrote_is_kept(tmp_path):
    """It does not tell the sizes of files."""
    task, output = captions(tmp_path / "data"), tmp_path / "run"
    before = stopped(task, output)
    for file in output.rglob("predictions*.jsonl"):
        file.write_text(file.read_text(encoding="utf-8").replace("image_bytes", "another"), encoding="utf-8")
    for image in (tmp_path / "data").rglob("*.png"):
        redraw(image)
    evaluate(task, asked := Asked(), output)
    assert len(asked.ids) == 9 - len(before)


def test_a_damaged_line_of_a_finished_cell_does_not_stop_others(tmp_path):
    task, output = captions(tmp_path / "data"), tmp_path / "run"
    evaluate(task, Asked(), output)
    with (output / "captions/2-random-0/predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write("{oops\n")
    evaluate(task, asked := Asked(), output, shots=(2, 3))
    assert len(asked.ids) == 18


@pytest.mark.parametrize("change", ["other_images", "blank_images", "shuffled_images"])
def test_changed_demonstrations_are_compared_by_what_they_showed(change, tmp_path):
    task, output = captions(tmp_path / "data"), tmp_path / "run"
    evaluate(task, Asked(), output, ablate=True)
    evaluate(task, asked := Asked(), output, ablate=True)
    assert asked.ids == []
    cell = output / "captions" / f"2-random-0-{change}"
    shown = read_rows(cell / "predictions.jsonl")[0]["demonstrations"][0]["image"]
    if change == "blank_images":
        Image.new("RGB", (64, 64)).save(shown)
        evaluate(task, asked, output, ablate=True)  # it is none of the task's
    else:
        redraw(shown)
        with pytest.raises(ValueError, match=cell.name):
            evaluate(task, asked, output, ablate=True)
    assert asked.ids == []

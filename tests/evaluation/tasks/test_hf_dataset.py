"""Datasets of Hugging Face as tasks, from local folders: nothing is downloaded."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation.tasks import hf_dataset
from flamboyance.evaluation.tasks.hf_dataset import load

datasets = pytest.importorskip("datasets")
COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield
    patch.undo()


def pictures(rows: int, first: int = 0) -> list[Image.Image]:
    return [
        Image.fromarray(np.full((6, 8, 3), list(COLORS.values())[i % 3], np.uint8) + np.uint8(i))
        for i in range(first, first + rows)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset with class numbers, as save_to_disk writes it, in two splits."""
    folder = tmp_path_factory.mktemp("data") / "stones"
    features = datasets.Features({"photo": datasets.Image(), "stone": datasets.ClassLabel(names=list(COLORS))})
    splits = {
        split: datasets.Dataset.from_dict(
            {"photo": pictures(rows, first), "stone": [i % 3 for i in range(first, first + rows)]}, features=features
        )
        for split, rows, first in (("train", 12, 0), ("test", 6, 12))
    }
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


COLUMNS = {"image": "photo", "label": "stone"}


def test_classes_of_a_saved_dataset(saved, tmp_path):
    task = load(f"hf:{saved}[test]", COLUMNS, f"hf:{saved}[train]", folder=tmp_path)
    assert task.name == "stones" and task.labels == ("blue", "green", "red") and task.metric.name == "top-1"
    assert [one.answer for one in task.queries] == ["red", "green", "blue"] * 2 and len(task.support) == 12
    for one, picture in zip(task.queries, pictures(6, 12), strict=True):
        assert one.image.is_relative_to(tmp_path) and Image.open(one.image).tobytes() == picture.tobytes()
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == 18
    assert load(f"hf:{saved}[test]", COLUMNS, folder=tmp_path).support == task.queries and len(files) == 18


def test_slices_of_saved_datasets(saved, tmp_path):
    """Of a folder of splits, and of one that holds a single split."""
    whole = load(f"hf:{saved}[train]", COLUMNS, folder=tmp_path).queries
    datasets.load_from_disk(saved)["train"].save_to_disk(tmp_path / "single")
    for folder in (saved, tmp_path / "single"):
        task = load(f"hf:{folder}[train[:5]]", COLUMNS, f"hf:{folder}[train[-7:]]", folder=tmp_path)
        assert [one.image for one in task.queries] == [one.image for one in whole[:5]]
        assert [one.image for one in task.support] == [one.image for one in whole[5:]]
        for wrong in ("nosuchsplit", "nosuchsplit[:5]", "other/train"):
            with pytest.raises(ValueError, match=re.escape(f"[{wrong}]") + r".*(train|other)"):
                load(f"hf:{folder}[{wrong}]", COLUMNS, folder=tmp_path)
    both = load(f"hf:{saved}[train[:2]+test[:1]]", COLUMNS, folder=tmp_path)
    assert [one.image for one in both.queries[:2]] == [one.image for one in whole[:2]] and len(both.queries) == 3


def test_several_columns_of_images(tmp_path):
    rows = {"left": pictures(4), "right": pictures(4, 1), "question": ["same?"] * 4, "answer": ["no"] * 4}
    text = datasets.Value("string")
    features = datasets.Features(
        {"left": datasets.Image(), "right": datasets.Image(), "question": text, "answer": text}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pairs")
    task = load(f"hf:{tmp_path / 'pairs'}[train]", {"image": "left+right"}, folder=tmp_path / "files")
    assert task.template.pattern.startswith("<image><image>Question") and len(list(tmp_path.rglob("files/*/*"))) == 5
    for i, one in enumerate(task.queries):
        assert [Image.open(image).getpixel((0, 0)) for image in one.images] == [
            picture.getpixel((0, 0)) for picture in pictures(2, i)
        ]


def test_the_command_reads_parquet_with_questions(tmp_path, capsys):
    rows = {
        "image": pictures(5),
        "query": [f"is {i} there?" for i in range(5)],
        "said": ["yes", "no"] * 2 + ["yes"],
        "answer_type": ["yes/no"] * 5,
    }
    features = datasets.Features(
        {"image": datasets.Image(), **dict.fromkeys(["query", "said", "answer_type"], datasets.Value("string"))}
    )
    (tmp_path / "own").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "own" / "train.parquet")
    name = f"hf:{tmp_path / 'own'}[train[:4]]"
    arguments = ["evaluate", name, "--columns", "question=query,answer=said", "--shots", "2", "--seeds", "0"]
    assert main([*arguments, "--beams", "1", "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run/own/2-random-0/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["asked"] for row in found] == [[question] for question in rows["query"][:4]]
    assert all(row["kinds"] == {"answer type": "yes/no"} and Path(row["image"]).is_file() for row in found)


def test_from_python(saved, tmp_path):
    def nearest(demonstrations, query):
        asked = np.asarray(query.images[0]).astype(int)
        shown = [one for one in demonstrations if one.images] or demonstrations
        return min(
            shown, key=lambda one: abs(np.asarray(one.images[0]).astype(int) - asked).sum() if one.images else 0
        ).answer

    name = f"hf:{saved}[test]"
    found = fl.evaluate(
        name, nearest, shots=[6], demonstrations=["balanced"], seeds=[0], columns=COLUMNS, support=f"hf:{saved}[train]",
        output=tmp_path,
    )  # fmt: skip
    assert found["stones"]["balanced"]["6"]["mean"] == 100


@pytest.mark.parametrize(
    "name, columns, said",
    [
        ("hf:stones", {}, "expected hf:NAME[SPLIT]"),
        ("hf:{saved}[test]", {}, "has the columns photo, stone"),
        ("hf:{saved}[test]", {"image": "photo", "label": "kind"}, "--columns label=kind"),
        ("hf:{saved}[test]", {"image": "stone"}, "holds ClassLabel; expected images"),
        ("hf:{saved}[test]", {"picture": "photo"}, "expected one of image, label"),
        ("hf:{saved}[val]", COLUMNS, "cannot be opened"),
    ],
)
def test_mistakes_are_named(saved, name, columns, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        load(name.replace("{saved}", str(saved)), columns, folder=tmp_path)


def test_without_the_package(monkeypatch, saved):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'flamboyance\[datasets\]'"):
        load(f"hf:{saved}[test]")


def test_columns_are_for_datasets(capsys, tmp_path):
    assert main(["evaluate", "a.csv", "--columns", "image=photo", "--output", str(tmp_path)]) == 2
    assert "--columns is for datasets" in capsys.readouterr().err
    assert hf_dataset.PREFIX == "hf:"

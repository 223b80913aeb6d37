"""A fine-tune on a folder, a CSV or a JSONL: what is held out, what is measured, what is said of bad data."""

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flamboyance import load_mini
from flamboyance.data.documents import Rejected
from flamboyance.data.shards import expand, records
from flamboyance.demo.world import caption, picture, scene
from flamboyance.recipes.finetune import finetune
from flamboyance.recipes.held_out import evaluate
from flamboyance.training.run import Run

COUNT = 40


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        drawn = scene(rng, 1)
        picture(drawn).save(folder / f"{number:02d}.JPG", quality=95)
        (folder / f"{number:02d}.txt").write_text(caption(drawn) + "\n")
    return folder


def prepared(data: Path, output: Path, **settings: Any) -> Run:
    run = finetune(data=str(data), output=str(output), **settings)
    output.mkdir(exist_ok=True)
    assert run.prepare
    run.prepare()
    return run


def used(run: Run) -> tuple[int, int]:
    """Documents that are trained on, and those that are held out."""
    source, trained, kept = run.training.sources["own"], 0, 0
    for shard in expand(source.shards):
        for record in records(shard):
            try:
                source.document(record, np.random.default_rng(0))
                trained += 1
            except Rejected as rejected:
                kept += rejected.reason == "held out"
    return trained, kept


def test_a_tenth_is_held_out_and_stays_the_same(photos: Path, tmp_path: Path) -> None:
    run = prepared(photos, tmp_path / "run")
    assert used(run) == (36, 4)
    before = (tmp_path / "run" / "held_out.json").read_bytes()
    (photos / "99.txt").write_text("a small red ring")
    (photos / "99.png").write_bytes((photos / "00.JPG").read_bytes())
    run = prepared(photos, tmp_path / "run")
    assert used(run) == (37, 4)
    assert (tmp_path / "run" / "held_out.json").read_bytes() == before


@pytest.mark.parametrize("share, expected", [(0.0, (40, 0)), (0.5, (20, 20)), (0.001, (39, 1))])
def test_shares(share: float, expected: tuple[int, int], photos: Path, tmp_path: Path) -> None:
    run = prepared(photos, tmp_path / "run", held_out=share)
    assert used(run) == expected
    assert (run.evaluate is None) == (run.training.evaluate_every == 0) == (share == 0)


def rows_of(photos: Path) -> list[dict[str, str]]:
    images = sorted(photos.glob("*.JPG"))
    return [{"image": f"photos/{one.name}", "text": one.with_suffix(".txt").read_text().strip()} for one in images]


def test_the_same_figures_from_a_folder_a_csv_and_a_jsonl(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, processor = load_mini()
    found = []
    for data in (photos, tmp_path / "rows.csv", tmp_path / "rows.jsonl"):
        run = prepared(data, tmp_path / f"run{len(found)}")
        assert used(run) == (36, 4)
        assert run.evaluate
        found.append(run.evaluate(model, processor))
    assert found[0] == found[1] == found[2]
    assert found[0]["exact"] == 1.0


def test_questions_interleaved_documents_and_damaged_images(photos: Path, tmp_path: Path) -> None:
    image = base64.b64encode((photos / "00.JPG").read_bytes()).decode()
    broken = base64.b64encode((photos / "00.JPG").read_bytes()[:300]).decode()
    rows: list[dict[str, Any]] = [
        {"image": image, "question": "how many objects are there?", "answer": "one"},
        {"images": [image, image], "text": "<image>Output:a ring<image>Output:a ring"},
        {"image": broken, "text": "a ring"},
    ] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepared(tmp_path / "rows.jsonl", tmp_path / "run", held_out=0.9)
    source: Any = run.training.sources["own"]
    figures = evaluate(*load_mini(), source)
    assert np.isfinite(figures["loss"])
    assert figures["exact"] == 1.0


def test_data_that_cannot_be_used_is_explained(tmp_path: Path, photos: Path) -> None:
    for text in photos.glob("*.txt"):
        text.unlink()
    with pytest.raises(ValueError, match=r"0 documents can be used \(no text: 40\).*cat.txt"):
        prepared(photos, tmp_path / "run")
    (tmp_path / "rows.csv").write_text("picture,words\na.jpg,b\n")
    with pytest.raises(ValueError, match="columns picture,words; expected image,text"):
        prepared(tmp_path / "rows.csv", tmp_path / "run")
    with pytest.raises(ValueError, match="no shards are found"):
        prepared(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match="held_out=10"):
        finetune(data="x", output="y", held_out=10)


def test_some_texts_missing_is_a_warning(photos: Path, tmp_path: Path) -> None:
    (photos / "07.txt").unlink()
    with pytest.warns(UserWarning, match=r"1 documents are left out \(no text: 1\)"):
        prepared(photos, tmp_path / "run")


def test_unknown_words_are_a_warning(photos: Path, tmp_path: Path) -> None:
    for text in photos.glob("*.txt"):
        text.write_text("my grandmother's garden")
    run = prepared(photos, tmp_path / "run")
    with pytest.warns(UserWarning, match="unknown to the tokenizer of mini"):
        run.build()


def test_a_model_directory_is_opened(photos: Path, tmp_path: Path) -> None:
    model, processor = load_mini()
    model.save_pretrained(tmp_path / "model", include_backbones=True)
    processor.save_pretrained(tmp_path / "model")
    run = prepared(photos, tmp_path / "run", model=str(tmp_path / "model"))
    made, _ = run.build()
    assert made.config.resampler == run.outline().resampler == model.config.resampler
    assert run.training.precision == "bf16" and os.path.isdir(run.training.output)

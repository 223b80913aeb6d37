"""A fine-tune on a folder, a CSV or a JSONL: what is held out, what is measured, what is said of bad data."""

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flamboyance import catalog, load_mini
from flamboyance.checkpoints.directory import WEIGHTS
from flamboyance.data.documents import Rejected
from flamboyance.data.shards import expand, records
from flamboyance.mini.world import caption, picture, scene
from flamboyance.recipes.finetune import finetune
from flamboyance.recipes.held_out import evaluate
from flamboyance.recipes.training_split import documents, unknown_words
from flamboyance.training.parallel import set_precision
from flamboyance.training.run import TrainingRun
from flamboyance.training.trained_parts import TrainedParts

COUNT = 40


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        drawn = scene(rng, 1)
        picture(drawn).save(folder / f"{number:02d}.JPG", quality=95)
        (folder / f"{number:02d}.txt").write_text(caption(drawn) + "\n", encoding="utf-8")
    return folder


def prepared(data: Path, output: Path, **settings: Any) -> TrainingRun:
    run = finetune(data=str(data), output=str(output), **settings)
    output.mkdir(exist_ok=True)
    assert run.prepare
    run.prepare()
    return run


def used(run: TrainingRun) -> tuple[int, int]:
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


def test_the_settings_decide_what_is_trained_of_a_model_that_was_trained_otherwise(
    photos: Path, tmp_path: Path
) -> None:
    """A model remembers what was trainable when it was saved."""
    model, processor = load_mini()
    TrainedParts(added_tokens=False, vision=True, language=True).apply(model)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    reopened, _ = catalog.resolve(tmp_path / "whole").open()
    assert any(p.requires_grad for p in reopened.language_model.parameters())
    built, _ = prepared(photos, tmp_path / "run", model=str(tmp_path / "whole")).build()
    TrainedParts().apply(built)
    names = {name for name, p in built.named_parameters() if p.requires_grad}
    assert names == {name for name, p in load_mini()[0].named_parameters() if p.requires_grad}


def test_what_was_learned_of_a_backbone_is_saved_again(photos: Path, tmp_path: Path) -> None:
    """Also where its values do not say so: a few elements of a tensor that is cast, or of one that FSDP shards."""
    model, processor = load_mini()
    model.language_model.requires_grad_(True)
    with torch.no_grad():
        model.get_input_embeddings().weight.view(-1)[1] += 1
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    built, _ = prepared(photos, tmp_path / "run", model=str(tmp_path / "whole")).build()
    set_precision(built, "bf16")
    built.save_pretrained(tmp_path / "again")
    names = {name for name in load_file(tmp_path / "whole" / WEIGHTS) if name.startswith("language_model.")}
    assert names and names == {n for n in load_file(tmp_path / "again" / WEIGHTS) if n.startswith("language_model.")}
    again = catalog.resolve(tmp_path / "again").model().get_input_embeddings().weight
    assert torch.equal(again.float(), model.get_input_embeddings().weight.bfloat16().float())


@pytest.mark.parametrize("bfloat16", [True, False])
def test_settings_follow_the_model_by_any_of_its_names(tmp_path: Path, monkeypatch, bfloat16: bool) -> None:
    monkeypatch.setattr("flamboyance.recipes.finetune.has_bfloat16", lambda: bfloat16)
    low = "bf16" if bfloat16 else "fp32"
    expected = {"mini": (5e-4, "fp32", 1), "small": (1e-4, low, None), "somebody/else": (5e-5, low, None)}
    for name, others in (("mini", ["flamingo-mini"]), ("small", ["flamingo-small"]), ("somebody/else", [])):
        for model in (name, *others):
            found = finetune(data="photos", output=str(tmp_path), model=model).training
            assert (found.learning_rate, found.precision, found.threads) == expected[name], model


def test_a_tenth_is_held_out_and_stays_the_same(photos: Path, tmp_path: Path) -> None:
    run = prepared(photos, tmp_path / "run")
    assert used(run) == (36, 4)
    before = (tmp_path / "run" / "held_out.json").read_bytes()
    (photos / "99.txt").write_text("a small red ring", encoding="utf-8")
    (photos / "99.png").write_bytes((photos / "00.JPG").read_bytes())
    run = prepared(photos, tmp_path / "run")
    assert used(run) == (37, 4)
    assert (tmp_path / "run" / "held_out.json").read_bytes() == before


def test_images_do_not_change_sides(photos: Path, tmp_path: Path) -> None:
    """What a run has trained on is not held out later, nor the other way round."""

    def prepare(name: str, share: float) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        run = finetune(data=str(photos), output=str(tmp_path / name), held_out=share)
        assert run.prepare
        run.prepare()

    def begin(name: str) -> None:
        (tmp_path / name / "checkpoints" / "step-00000002").mkdir(parents=True)

    prepare("none", 0.0)
    prepare("none", 0.1)  # no step was taken
    prepare("all", 0.0)
    begin("all")
    prepare("all", 0.0)
    prepare("some", 0.1)
    with pytest.raises(ValueError, match=r"held_out=0\.4.*began with held_out=0\.1"):
        prepare("some", 0.4)
    begin("some")
    prepare("some", 0.1)
    for name, share in (("all", 0.1), ("some", 0.0), ("some", 0.4)):
        with pytest.raises(ValueError, match=f"held_out={share:g}.*change sides"):
            prepare(name, share)
    file = tmp_path / "some" / "held_out.json"  # as earlier versions wrote it
    file.write_text(json.dumps({"images": json.loads(file.read_text(encoding="utf-8"))["images"]}), encoding="utf-8")
    prepare("some", 0.4)
    with pytest.raises(ValueError, match="change sides"):
        prepare("some", 0.0)


@pytest.mark.parametrize("share, expected", [(0.0, (40, 0)), (0.5, (20, 20)), (0.001, (39, 1))])
def test_shares(share: float, expected: tuple[int, int], photos: Path, tmp_path: Path) -> None:
    run = prepared(photos, tmp_path / "run", held_out=share)
    assert used(run) == expected
    assert (run.evaluate is None) == (run.training.evaluate_every == 0) == (share == 0)


def rows_of(photos: Path) -> list[dict[str, str]]:
    images = sorted(photos.glob("*.JPG"))
    return [
        {"image": f"photos/{one.name}", "text": one.with_suffix(".txt").read_text(encoding="utf-8").strip()}
        for one in images
    ]


def test_the_same_figures_from_a_folder_a_csv_and_a_jsonl(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
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
    images = [base64.b64encode((photos / f"0{number}.JPG").read_bytes()).decode() for number in range(4)]
    broken = base64.b64encode((photos / "00.JPG").read_bytes()[:300]).decode()
    rows: list[dict[str, Any]] = [
        {"image": images[0], "question": "how many objects are there?", "answer": "one"},
        {"images": [images[1], images[2]], "text": "<image>Output:a ring<image>Output:a ring"},
        {"image": broken, "text": "a ring"},
        {"image": images[3], "question": "how many objects are there?", "answer": "one"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = prepared(tmp_path / "rows.jsonl", tmp_path / "run", held_out=0.75)
    source: Any = run.training.sources["own"]
    figures = evaluate(*load_mini(), source)
    assert np.isfinite(figures["loss"])
    assert figures["exact"] == 1.0


def test_data_that_cannot_be_used_is_explained(tmp_path: Path, photos: Path) -> None:
    for text in photos.glob("*.txt"):
        text.unlink()
    with pytest.raises(ValueError, match=r"no text: 40.*cat\.txt"):
        prepared(photos, tmp_path / "run")
    (tmp_path / "rows.csv").write_text("picture,words\na.jpg,b\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"picture,words.*image,text"):
        prepared(tmp_path / "rows.csv", tmp_path / "run")
    (tmp_path / "rows.csv").write_text("image,text\nphotos/00.JPG,a dog, two cats\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv, line 2.*3 .*2 .*image,text"):
        prepared(tmp_path / "rows.csv", tmp_path / "run")
    with pytest.raises(ValueError, match="matches nothing"):
        prepared(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match="held_out=10"):
        finetune(data="x", output="y", held_out=10)


def test_some_texts_missing_is_a_warning(photos: Path, tmp_path: Path) -> None:
    (photos / "07.txt").unlink()
    with pytest.warns(UserWarning, match=r"no text: 1.*photos/07"):
        prepared(photos, tmp_path / "run")


def test_unknown_words_are_a_warning(photos: Path, tmp_path: Path) -> None:
    for text in photos.glob("*.txt"):
        text.write_text("my grandmother's garden", encoding="utf-8")
    run = prepared(photos, tmp_path / "run")
    with pytest.warns(UserWarning, match="tokenizer of mini"):
        run.build()


def test_what_stands_before_every_text_is_no_unknown_word(photos: Path, tmp_path: Path) -> None:
    processor = catalog.resolve("small").processor()
    tokenizer = processor.tokenizer
    assert tokenizer("a").input_ids[0] == tokenizer.unk_token_id  # one token for both
    (source,) = prepared(photos, tmp_path / "run").training.sources.values()
    assert unknown_words(source, processor) == 0.0


def test_a_model_directory_is_opened(photos: Path, tmp_path: Path) -> None:
    model, processor = load_mini()
    model.save_pretrained(tmp_path / "model", include_backbones=True)
    processor.save_pretrained(tmp_path / "model")
    run = prepared(photos, tmp_path / "run", model=str(tmp_path / "model"))
    made, _ = run.build()
    assert made.config.resampler == run.outline().resampler == model.config.resampler
    assert os.path.isdir(run.training.output)


# ---- what is held out -----------------------------------------------------------------------------------------------


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def sides(run: TrainingRun) -> tuple[set[str], set[str]]:
    """The texts that are trained on, and those that are held out."""
    source: Any = run.training.sources["own"]
    trained: set[str] = set()
    kept = {json.loads(record.fields["json"])["text"] for record, _ in documents(source, True)}
    for shard in expand(source.shards):
        for record in records(shard):
            try:
                source.document(record, np.random.default_rng(0))
                trained.add(json.loads(record.fields["json"])["text"])
            except Rejected:
                continue
    return trained, kept


def test_captions_of_one_image_are_on_one_side(photos: Path, tmp_path: Path) -> None:
    (photos / "copy.png").write_bytes((photos / "00.JPG").read_bytes())
    images = [f"photos/{number:02d}.JPG" for number in range(20)] + ["photos/copy.png"]
    rows = [{"image": image, "text": f"{image}: text {number}"} for number in range(5) for image in images]
    trained, kept = sides(prepared(written(tmp_path / "rows.csv", rows), tmp_path / "run", held_out=0.3))
    of_trained, of_kept = (
        {text.split(":")[0].replace("copy.png", "00.JPG") for text in one} for one in (trained, kept)
    )
    assert not of_trained & of_kept and len(of_trained | of_kept) == 20
    assert len(trained) + len(kept) == len(rows) and 20 <= len(kept) <= 31


def test_rows_sorted_by_class_are_held_out_of_every_class(photos: Path, tmp_path: Path) -> None:
    classes = ["ring"] * 20 + ["disc"] * 12 + ["digit"] * 8
    rows = [{"image": f"photos/{n:02d}.JPG", "label": label} for n, label in enumerate(classes)]
    run = prepared(written(tmp_path / "rows.csv", rows), tmp_path / "run", held_out=0.25)
    source: Any = run.training.sources["own"]
    found = [document.text for _, document in documents(source, True)]
    assert [sum(name in text for text in found) for name in ("ring", "disc", "digit")] == [5, 3, 2]


def test_what_is_held_out_stays_held_out_when_rows_are_edited(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    run = prepared(written(tmp_path / "rows.csv", rows), tmp_path / "run")
    held = {document.images for _, document in documents(run.training.sources["own"], True)}  # ty: ignore
    edited = [dict(row, text=f"a new text {number}") for number, row in enumerate(reversed(rows))]
    for output in ("run", "another"):
        run = prepared(written(tmp_path / "rows.csv", edited[3:]), tmp_path / output)
        now = {document.images for _, document in documents(run.training.sources["own"], True)}  # ty: ignore
        assert len(now & held) >= len(held) - 2


def test_held_out_questions_that_hold_tokens_are_cleaned_as_in_training(photos: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image": f"photos/{n:02d}.JPG",
            "question": "how many <image>objects\ud83d are <|endofchunk|>there?",
            "answer": "one",
        }
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = prepared(tmp_path / "rows.jsonl", tmp_path / "run", held_out=0.5)
    assert run.evaluate
    assert set(run.evaluate(*load_mini())) == {"loss", "exact"}


def test_documents_that_all_share_an_image_cannot_be_held_out(photos: Path, tmp_path: Path) -> None:
    rows = [{"image": "photos/00.JPG", "text": f"text {number}"} for number in range(4)]
    with pytest.raises(ValueError, match="share images"):
        prepared(written(tmp_path / "rows.csv", rows), tmp_path / "run")


def test_images_outside_of_the_folder_are_left_out_unless_allowed(photos: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.JPG").write_bytes((photos / "00.JPG").read_bytes())
    (inner / "b.JPG").write_bytes((photos / "01.JPG").read_bytes())
    rows = [
        {"image": image, "text": "a ring"} for image in ("a.JPG", "b.JPG", "../photos/02.JPG", str(photos / "03.JPG"))
    ]
    for name in ("rows.csv", "rows.jsonl"):
        path = written(inner / "rows.csv", rows)
        if name == "rows.jsonl":
            path = inner / name
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.warns(UserWarning, match=r"image outside the folder: 2"):
            run = prepared(path, tmp_path / f"run-{name}", held_out=0)
        assert used(run)[0] == 2
        assert used(prepared(path, tmp_path / f"free-{name}", held_out=0, outside=True))[0] == 4

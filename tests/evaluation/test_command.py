"""`flamboyance evaluate`, as it is called: on one process and two, killed and gone on with, on data that is wrong."""

import json
import re
import shutil
import signal
import time

import pytest

from flamboyance.cli import main
from flamboyance.evaluation.results import read_rows
from flamboyance.files import output_lock
from tests.evaluation.small_tasks import WORDS, draw
from tests.processes import Child, ranks
from tests.tiny import save_tiny_flamingo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Forty pictures with labels, and the same with captions."""
    folder = tmp_path_factory.mktemp("pets")
    images = draw(folder / "images", 40, 0)
    for kind, texts in (("label", ("cat", "dog")), ("text", WORDS)):
        lines = [f"images/{image.name},{texts[i % len(texts)]}" for i, image in enumerate(images)]
        (folder / f"{kind}.csv").write_text("\n".join([f"image,{kind}", *lines]) + "\n", encoding="utf-8")
    return folder


def arguments(pets, model, output, *more) -> list[str]:
    tasks = [str(pets / "label.csv"), str(pets / "text.csv")]
    options = ["--model", str(model), "--output", str(output), "--shots", "0,3", "--seeds", "0,1"]
    return ["evaluate", *tasks, *options, "--demonstrations", "random,rices", "--features", str(pets / "f"), *more]


@pytest.fixture(scope="module")
def whole(pets, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert main(arguments(pets, model, output)) == 0
    return output


def results(output) -> dict:
    return {
        (str(file.relative_to(output)), row["id"]): row
        for file in sorted(output.glob("*/*/predictions.jsonl"))
        for row in read_rows(file)
    }


def expected(output) -> dict:
    """The same, to compare with: batches of other sizes round otherwise."""
    rows = results(output)
    return {key: {**row, "scores": pytest.approx(row["scores"], abs=1e-4)} for key, row in rows.items()}


def test_what_is_written(whole, pets, model):
    run = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    assert run["model"]["name"] == str(model) and run["versions"]["torch"] and run["command"][0] == "flamboyance"
    assert run["tasks"]["label"]["labels"] == ["cat", "dog"] and run["tasks"]["text"]["metric"] == "CIDEr"
    assert run["settings"]["shots"] == [0, 3]
    cells = sorted(str(file.parent.relative_to(whole)) for file in whole.glob("*/*/score.json"))
    ways = ["0-random-0", "0-random-1", "0-rices-0", "3-random-0", "3-random-1", "3-rices-0"]
    assert cells == [f"{task}/{way}" for task in ("label", "text") for way in ways]
    rows = read_rows(whole / "label/3-rices-0/predictions.jsonl")
    assert [row["id"] for row in rows] == [str(i + 1) for i in range(40)]
    for row in rows:
        shown = [shot["image"] for shot in row["demonstrations"]]
        assert len(set(shown)) == 3 and row["image"] not in shown and row["score"] in (0, 100)
    score = json.loads((whole / "label/3-rices-0/score.json").read_text(encoding="utf-8"))
    assert score["value"] == pytest.approx(sum(row["score"] for row in rows) / 40)
    assert score["interval"][0] <= score["value"] <= score["interval"][1]


def test_two_processes_give_the_same(whole, pets, model, tmp_path):
    printed = ranks(main, arguments(pets, model, tmp_path), log=tmp_path / "log")
    assert results(tmp_path) == expected(whole)
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == json.loads(
        (whole / "scores.json").read_text(encoding="utf-8")
    )
    assert printed.count("label, 3 shots, random, seed 0: top-1") == 1


def test_killed_and_gone_on_with(whole, pets, model, tmp_path):
    for cell in ("label/3-random-0", "text/0-rices-0"):
        given = arguments(pets, model, tmp_path, "--batch-size", "1")
        process = Child(main, given, log=tmp_path / "log")
        end = time.monotonic() + 600
        while not (tmp_path / cell).is_dir() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        assert process.kill() == -signal.SIGKILL, process.printed
        assert not (tmp_path / "scores.json").exists()
    assert main(arguments(pets, model, tmp_path)) == 0
    assert results(tmp_path) == expected(whole)
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == json.loads(
        (whole / "scores.json").read_text(encoding="utf-8")
    )


def test_scores_are_printed_at_the_end_with_their_intervals(whole, pets, model, capsys):
    """Of what was asked now, over all seeds that are there. Nothing is computed again."""
    capsys.readouterr()
    assert main(arguments(pets, model, whole, "--seeds", "1", "--shots", "3")) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = json.loads((whole / "scores.json").read_text(encoding="utf-8"))["label"]
    (random,) = [line for line in lines if "random" in line and line.startswith("label, top-1")]
    mean, deviation = (scores["random"]["3"][name] for name in ("mean", "std"))
    assert f"{mean:.1f} ({deviation:.1f})" in random and " to " in random
    assert random.split()[-2:] == ["2", "40"]  # seeds, queries
    assert f"flamboyance report {whole}" in lines[-1]
    assert not any(line.split()[:2] == ["random", "0"] for line in lines)  # 0 shots were not asked now


def test_scores_as_json(whole, pets, model, capsys):
    capsys.readouterr()
    assert main(arguments(pets, model, whole, "--json")) == 0
    out, error = capsys.readouterr()
    told = json.loads(out)
    assert told["output"] == str(whole) and told["model"] == str(model) and told["protocol"] == "papers"
    rows = {(one["task"], one["demonstrations"], one["shots"]): one for one in told["scores"]}
    assert set(rows) == {(t, w, n) for t in ("label", "text") for w in ("random", "rices") for n in (0, 3)}
    scores = json.loads((whole / "scores.json").read_text(encoding="utf-8"))
    for (task, way, shots), row in rows.items():
        kept = scores[task][way][str(shots)]
        assert (row["mean"], row["std"]) == (kept["mean"], kept["std"])
        assert {seed: one["value"] for seed, one in row["seeds"].items()} == kept["seeds"]
        low, high = row["interval"]
        assert low <= row["mean"] <= high and all(one["queries"] == 40 for one in row["seeds"].values())
    assert rows["label", "random", 3]["metric"] == "top-1" and "flamboyance report" in error


def test_progress_is_not_mixed_into_the_json(pets, model, tmp_path, capsys):
    given = ["evaluate", str(pets / "label.csv"), "--model", str(model), "--output", str(tmp_path), "--json"]
    assert main([*given, "--shots", "0", "--seeds", "0", "--queries", "2"]) == 0
    out, error = capsys.readouterr()
    assert len(json.loads(out)["scores"]) == 1 and "label, 0 shots, random, seed 0: top-1" in error


def test_rices_is_not_asked_again_for_further_seeds(whole, pets, model, tmp_path, monkeypatch):
    output = tmp_path / "output"
    shutil.copytree(whole, output)
    monkeypatch.setattr("flamboyance.commands.rices.open_encoder", None)  # nor is its tower opened
    given = arguments(pets, model, output, "--seeds", "5", "--shots", "3")
    assert main([one for one in given if one != str(pets / "text.csv")]) == 0
    assert sorted(path.name for path in (output / "label").iterdir() if path.name.startswith("3")) == [
        "3-random-0", "3-random-1", "3-random-5", "3-rices-0",
    ]  # fmt: skip


def test_a_query_without_a_feature_is_named_before_the_model_is_loaded(pets, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flamboyance.commands.evaluate.open_answers", None)
    images = draw(tmp_path / "images", 6, 5)
    lines = [f"images/{image.name},{('cat', 'dog')[i % 2]}" for i, image in enumerate(images)]
    (tmp_path / "label.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    given = ["evaluate", tmp_path / "label.csv", "--model", model, "--output", tmp_path / "run", "--shots", "3"]
    given += ["--demonstrations", "rices", "--features", tmp_path / "f", "--support", pets / "label.csv"]
    images[4].write_bytes(images[4].read_bytes()[:70])
    told = complaint(capsys, *given)
    assert "query '5'" in told and "4.png" in told and "truncated" in told
    assert not (tmp_path / "run").exists()
    # Too few demonstrations have a feature.
    given[-1] = tmp_path / "shown.csv"
    shown = draw(tmp_path / "shown", 4, 6)
    lines = [f"shown/{image.name},{('cat', 'dog')[i % 2]}" for i, image in enumerate(shown)]
    given[-1].write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    shown[0].write_bytes(b"cut")
    shown[1].write_bytes(b"cut")
    draw(tmp_path / "images", 6, 5)
    assert re.search(r"\b3 demonstrations.* 2\b", complaint(capsys, *given))


def test_two_evaluations_do_not_write_to_one_directory(pets, model, tmp_path, capsys):
    with output_lock(tmp_path):
        told = complaint(capsys, *arguments(pets, model, tmp_path, "--demonstrations", "random"))
    assert str(tmp_path) in told
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def complaint(capsys, *given) -> str:
    assert main([*map(str, given)]) == 2
    return capsys.readouterr().err


def test_mistakes_are_told_before_a_model_is_loaded(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flamboyance.commands.evaluate.open_answers", None)
    assert "cocoa is neither a task" in complaint(capsys, "evaluate", "cocoa")
    assert "--data is missing" in complaint(capsys, "evaluate", "coco")
    told = complaint(capsys, "evaluate", "coco", "--data", tmp_path)
    assert "dataset_coco.json" in told and "train2014" in told and "val2014" in told
    assert re.search(r"\b39 .*\b64 ", complaint(capsys, "evaluate", pets / "label.csv", "--shots", "64"))
    assert "labels" in complaint(capsys, "evaluate", pets / "text.csv", "--shots", "2", "--demonstrations", "balanced")
    assert "TASK.NAME=PATH" in complaint(capsys, "evaluate", pets / "text.csv", "--file", "x")
    assert "coco" in complaint(capsys, "evaluate", pets / "text.csv", "--file", "coco.karpathy=a.json")
    (tmp_path / "label.csv").write_text(f"image,label\n{pets / 'images' / '0.png'},cat\n", encoding="utf-8")
    assert "--outside" in complaint(capsys, "evaluate", tmp_path / "label.csv")
    (tmp_path / "label.csv").write_text("image,label\nnone.png,cat\n", encoding="utf-8")
    assert "line 2" in complaint(capsys, "evaluate", tmp_path / "label.csv")
    assert "label" in complaint(capsys, "evaluate", pets / "label.csv", pets / "images" / ".." / "label.csv")


def test_wrong_options(capsys):
    for given in (["--shots", "a"], ["--demonstrations", "nearest"], ["--seeds", "-1"], ["--protocol", "mine"]):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", "coco", *given])
        assert stopped.value.code == 2
        assert given[0] in capsys.readouterr().err


def test_a_truncated_query_image_is_named_and_the_rest_is_kept(pets, model, tmp_path, capsys):
    images = draw(tmp_path / "images", 12, 5)
    lines = [f"images/{image.name},{('cat', 'dog')[i % 2]}" for i, image in enumerate(images)]
    (tmp_path / "label.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    good = images[11].read_bytes()
    images[11].write_bytes(good[:70])
    given = ["evaluate", tmp_path / "label.csv", "--model", model, "--output", tmp_path / "run", "--shots", "0"]
    given += ["--seeds", "0", "--batch-size", "1"]
    assert "11.png" in complaint(capsys, *given)
    images[11].write_bytes(good)
    assert main([*map(str, given)]) == 0
    assert len(read_rows(tmp_path / "run/label/0-random-0/predictions.jsonl")) == 12


def test_data_that_changed_are_refused(pets, model, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(pets, data)
    given = arguments(data, model, tmp_path / "out", "--shots", "0", "--seeds", "0", "--demonstrations", "random")
    assert main(given) == 0
    assert main(given) == 0  # nothing to do
    table = data / "label.csv"
    table.write_text(
        table.read_text(encoding="utf-8").replace(",cat", ",dog", 1), encoding="utf-8"
    )  # a label was wrong: as many rows, the same labels
    assert main(given) != 0
    assert "another tasks" in capsys.readouterr().err

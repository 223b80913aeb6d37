"""Few-shot tasks during training: the figures of `flamboyance evaluate`, and the same run with and without them."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flamboyance.cli import main
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.recipes.arguments import find, resolve
from flamboyance.recipes.summaries import SUMMARIES
from flamboyance.reports.evaluation_run import read_run
from flamboyance.training import plot
from flamboyance.training.loop import train
from flamboyance.training.signals import Interrupted
from tests.processes import Child, ranks
from tests.training.tiny_run import COLORS, jpeg, tiny_run, write_shards

SHOTS, SEEDS = (0, 2), (0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards to train on, and two tasks: the colour of a square as a label, and as a text."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "shards")
    tables = {"colours": ["image,label"], "texts": ["image,text"]}
    for i in range(15):
        color = list(COLORS)[i % 3]
        (folder / f"{i}.jpg").write_bytes(jpeg(color, 1000 + i))
        tables["colours"].append(f"{i}.jpg,{color}")
        tables["texts"].append(f"{i}.jpg,a {color} square")
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def made(output: Path, data: Path, steps: int, **options):
    tasks = (str(data / "colours.csv"), str(data / "texts.csv"))
    settings = {"workers": 0, "evaluate": tasks, "evaluate_shots": SHOTS, "evaluate_seeds": SEEDS}
    return tiny_run(output, steps, data / "shards", **{**settings, "evaluate_queries": 7, **options})


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def figures(output: Path) -> dict[int, dict[str, float]]:
    """The evaluations that a run has logged, by step."""
    kept = {"evaluation/colours", "evaluation/texts"}
    found = {row["step"]: {k: v for k, v in row.items() if k.split("@")[0] in kept} for row in lines(output)}
    return {step: values for step, values in found.items() if values}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(made(output, data, 6, evaluate_every=3, export_every=3))
    return output


def test_its_figures_are_those_of_the_command_on_the_exported_model(whole, data, tmp_path):
    assert set(figures(whole)) == {0, 3, 6}
    assert figures(whole)[0] != figures(whole)[6]
    for step, model in ((3, "models/step-00000003"), (6, "model")):
        given = ["evaluate", data / "colours.csv", data / "texts.csv", "--model", whole / model, "--queries", "7"]
        given += ["--shots", "0,2", "--seeds", "0,1", "--output", tmp_path / str(step), "--dtype", "float32"]
        assert main([*map(str, given)]) == 0
        scores = json.loads((tmp_path / str(step) / "scores.json").read_text(encoding="utf-8"))
        afterwards = {
            f"evaluation/{task}@{shots}": one["mean"]
            for task, modes in scores.items()
            for shots, one in modes["random"].items()
        }
        assert figures(whole)[step] == pytest.approx(afterwards) and len(afterwards) == 4
        during = read_run(whole / "evaluation" / f"step-{step:08d}")
        after = read_run(tmp_path / str(step))
        assert [[row["answer"] for row in cell.rows()] for cell in during.cells] == [
            [row["answer"] for row in cell.rows()] for cell in after.cells
        ]


def test_training_is_the_same_without_them(whole, data, tmp_path):
    train(made(tmp_path / "run", data, 6, evaluate=()))
    assert [row["loss"] for row in lines(tmp_path / "run")] == [row["loss"] for row in lines(whole) if row["step"]]
    one, other = (load_file(run / "model" / "model.safetensors") for run in (whole, tmp_path / "run"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_in_bf16(data, tmp_path):
    train(made(tmp_path / "run", data, 1, evaluate_every=1, precision="bf16", checkpoint_activations=True))
    found = figures(tmp_path / "run")
    assert set(found) == {0, 1} and all(value == value for row in found.values() for value in row.values())


def test_curves(whole, tmp_path):
    pytest.importorskip("matplotlib")
    assert [title for title, _ in plot._panels([plot.read(whole)])][-3:-1] == [
        "Evaluation: colours",
        "Evaluation: texts",
    ]
    plot.draw([plot.read(whole)], tmp_path / "curves.svg")


@pytest.mark.parametrize("step", [0, 3])
def test_a_signal_in_an_evaluation_costs_nothing(whole, data, tmp_path, monkeypatch, step):
    asked, answer = [], FlamingoAnswers.score

    def interrupted(self, prompts):
        asked.append(len(prompts))
        if len(asked) == 2 + 4 * bool(step):  # in the second of a step's four cells with labels
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return answer(self, prompts)

    run = made(tmp_path / "run", data, 6, evaluate_every=3, export_every=3)
    monkeypatch.setattr(FlamingoAnswers, "score", interrupted)
    with pytest.raises(Interrupted):
        train(run)
    assert not (tmp_path / "run" / "models").exists()
    done = len(asked)
    train(run)
    assert len(asked) == 3 * 4 + 1 and done < 8  # what was answered before the signal is not asked again
    assert [row["step"] for row in lines(tmp_path / "run")] == list(range(7))
    assert figures(tmp_path / "run") == figures(whole)
    assert [row.get("loss") for row in lines(tmp_path / "run")] == [row.get("loss") for row in lines(whole)]
    assert (tmp_path / "run" / "models" / "step-00000003" / "model.safetensors").exists()


def test_an_evaluation_of_other_weights_is_not_resumed(whole, data, tmp_path):
    output = tmp_path / "run"
    train(made(output, data, 1, evaluate_every=1, seed=9))
    (output / "log.jsonl").unlink()
    shutil.rmtree(output / "model")
    for folder in (output / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    train(made(output, data, 1, evaluate_every=1))
    assert [figures(output)[step] for step in (0, 1)] == [figures(whole)[0], figures(output)[1]]


def test_an_evaluation_of_replaced_pictures_is_not_resumed(data, tmp_path):
    data = Path(shutil.copytree(data, tmp_path / "data"))
    train(made(tmp_path / "run", data, 1, evaluate_every=1))
    (tmp_path / "run" / "log.jsonl").unlink()
    for folder in ("checkpoints", "model"):
        shutil.rmtree(tmp_path / "run" / folder)
    for i in range(15):
        (data / f"{i}.jpg").write_bytes(jpeg(list(COLORS)[(i + 1) % 3], 2000 + i) + bytes(i))
    for output in (tmp_path / "run", tmp_path / "anew"):
        train(made(output, data, 1, evaluate_every=1))
    assert figures(tmp_path / "run") == figures(tmp_path / "anew")


def killed(output: str, data: str) -> None:
    train(made(Path(output), Path(data), 6, evaluate_every=3, export_every=3, checkpoint_every=1))


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_evaluates(whole, data, tmp_path):
    output = tmp_path / "run"
    child = Child(killed, str(output), str(data), log=tmp_path / "log")
    begun, end = output / "evaluation" / "step-00000003" / "run.json", time.monotonic() + 300
    while not begun.exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    child.kill()
    assert begun.exists(), child.printed
    killed(str(output), str(data))
    assert [row["step"] for row in lines(output)] == list(range(7))
    assert figures(output) == figures(whole)


def two(output: str, data: str, parallel: str) -> None:
    train(made(Path(output), Path(data), 2, evaluate_every=2, parallel=parallel))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_answer_together(whole, data, tmp_path, parallel):
    said = ranks(two, str(tmp_path / "run"), str(data), parallel, log=tmp_path / "log")
    found = figures(tmp_path / "run")
    assert set(found) == {0, 2} and found[0] == pytest.approx(figures(whole)[0])  # the same model
    assert said.count("step 2, evaluated") == 1
    output = tmp_path / "run" / "evaluation"
    assert sorted(folder.name for folder in output.iterdir()) == ["step-00000000", "step-00000002"]
    for cell in read_run(output / "step-00000002").cells:
        assert cell.count() == 7


@pytest.mark.parametrize("recipe", sorted(set(SUMMARIES) - {"contrastive"}))  # which trains no Flamingo
def test_every_recipe_takes_them(recipe, data):
    from flamboyance.recipes import RECIPES

    required = {
        "new": ["vision=v", "language=l", "data=d"],
        "finetune": ["data=d", "held_out=0"],
        "mini": [],
    }.get(recipe, ["laion=l", "mmc4=m"])
    given = [*required, "output=o", f"evaluate={data / 'colours.csv'},coco", "evaluate_every=50", "evaluate_shots=0,8"]
    training = resolve(find(recipe, RECIPES), [*given, "evaluate_queries=none"]).training
    assert training.evaluate == (str(data / "colours.csv"), "coco") and training.evaluate_every == 50
    assert training.evaluate_shots == (0, 8) and training.evaluate_queries is None


@pytest.mark.parametrize(
    "options, told",
    [
        ({"evaluate_every": 0}, "add evaluate_every=N"),
        ({"evaluate": ("cocoa",)}, "cocoa is neither a task"),
        ({"evaluate": ("coco",)}, "evaluate_data is missing: the folder that holds coco/"),
        ({"evaluate_shots": (0, 99)}, "14 demonstrations to choose from"),
        ({"evaluate_shots": ()}, "evaluate_shots="),
        ({"evaluate_queries": 0}, "evaluate_queries=0"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(data, tmp_path, options, told):
    run = made(tmp_path / "run", data, 2, **{"evaluate_every": 1, **options})
    with pytest.raises(ValueError, match=told):
        train(replace(run, build=lambda: pytest.fail("a model was loaded")))


def test_a_report_knows_the_step(whole):
    about = json.loads((whole / "evaluation" / "step-00000003" / "run.json").read_text(encoding="utf-8"))
    assert about["model"]["name"] == "run, step 3" and about["fixed"] == {"queries": 7, "beams": 3}
